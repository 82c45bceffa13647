// BatchNorm of one feature: a batch to drag, what training makes of it, what is stored, and what evaluation makes of it.
const start = (root, given) => {
  const { labels, limits, eps, momentum, least, most } = given;
  const half = Number(((limits[1] - limits[0]) / 2).toFixed(given.digits));
  let gamma, beta, stored;

  // Divided by m, as training normalises with it.
  const moments = x => {
    const m = x.length, mean = x.reduce((sum, v) => sum + v, 0) / m;
    return { m, mean, variance: x.reduce((sum, v) => sum + (v - mean) ** 2, 0) / m };
  };
  const unbiased = batch => batch.variance * batch.m / (batch.m - 1);
  const normalise = (x, by) => x.map(v => (v - by.mean) / Math.sqrt(by.variance + eps));
  const output = unit => unit.map(v => gamma * v + beta);
  // Momentum is the weight of the new batch; without it every batch counts the same.
  const train = () => {
    const batch = moments(points.values()), weight = momentum ?? 1 / (stored.steps + 1);
    const mix = (old, now) => (1 - weight) * old + weight * now;
    stored = { mean: mix(stored.mean, batch.mean), variance: mix(stored.variance, unbiased(batch)), steps: stored.steps + 1 };
  };

  const rows = () => {
    const batch = 44, out = figure.base - 40;
    return { batch, unit: Math.round((batch + 36 + out) / 2), out };
  };
  // A dot, or at the end of the axis a triangle towards where it would be.
  const dot = (className, v, y) => {
    const x = figure.x(clamp(v, ...limits)), way = Math.sign(v - clamp(v, ...limits));
    if (!way) svg("circle", { class: className, cx: figure.x(v), cy: y, r: 4.5 }, figure.back);
    else svg("path", { class: className, d: `M${x + 6 * way} ${y}l${-9 * way} -5v10z` }, figure.back);
  };
  const way = (ink, above, x, by) => {
    const { batch, unit, out } = rows(), to = normalise(x, by), z = output(to), side = above ? -8 : 8;
    const sd = Math.sqrt(by.variance), y = batch + (above ? 24 : 32);
    figure.line(`bnn-line ${ink}`, figure.x(by.mean - sd), y, figure.x(by.mean + sd), y);
    figure.line(`bnn-line ${ink}`, figure.x(by.mean), y - 4, figure.x(by.mean), y + 4);
    x.forEach((v, i) => {
      const d = `M${figure.x(v)} ${batch}L${figure.x(to[i])} ${unit + side}L${figure.x(z[i])} ${out + side}`;
      svg("path", { class: `bnn-way ${ink}`, d }, figure.back);
    });
    to.forEach(v => dot(`bnn-point ${ink}`, v, unit + side));
    z.forEach(v => dot(`bnn-point ${ink}`, v, out + side));
    return { to, z };
  };

  const figure = new Figure(root, given, [20, 20, 26, 28], () => {
    const x = points.values(), batch = moments(x), { unit, out } = rows();
    points.strip();
    figure.axis(labels.batch);
    for (const y of [unit, out]) figure.line("bnn-grid", figure.x(limits[0]), y, figure.x(limits[1]), y);
    figure.text("", 2, unit - 22, "start", labels.unit);
    figure.text("", 2, out - 22, "start", labels.output);
    const evaluation = way("bnn-prior", false, x, stored), training = way("bnn-posterior", true, x, batch);
    const sign = gamma < 0 ? -1 : 1;
    figure.line("bnn-line bnn-data", figure.x(beta), figure.base, figure.x(edge()), figure.base);
    figure.text("", figure.x(beta) - 9 * sign, figure.base - 7, gamma < 0 ? "start" : "end", "\u03b2");
    figure.text("", figure.x(edge()) + 9 * sign, figure.base - 7, gamma < 0 ? "end" : "start", "\u03b3");

    mean(number(batch.mean, 3));
    biased(number(batch.variance, 3)).textContent = labels.biased.replace("{m}", batch.m);
    larger(number(unbiased(batch), 3)).textContent = labels.unbiased.replace("{m}", batch.m - 1);
    storedMean(number(stored.mean, 3));
    storedVariance(number(stored.variance, 3));
    steps(String(stored.steps));
    scale(number(gamma, given.digits));
    shift(number(beta, given.digits));
    // A space as wide as a digit stands where others have their minus.
    const list = values => values.map(v => number(v, 2).padStart(5, "\u2007")).join("\t");
    normalised(list(training.to));
    trained(list(training.z));
    evaluated(list(evaluation.z));
    add.disabled = batch.m >= most;
    remove.disabled = batch.m <= least;
  }, [310, 360]);

  const edge = () => clamp(beta + gamma, ...limits);
  figure.handle({ name: labels.beta, className: "bnn-likelihood", min: limits[0], max: limits[1],
    get: () => beta, set: v => { beta = v; }, at: () => [figure.x(beta), figure.base] });
  figure.handle({ name: labels.gamma, className: "bnn-data", min: -half, max: half,
    get: () => gamma, set: v => { gamma = v; }, at: () => [figure.x(edge()), figure.base] });
  const points = figure.points({ name: labels.value, y: () => rows().batch, least, most });

  const mean = figure.item("mean", labels.mean, "posterior"), biased = figure.item("biased", labels.biased);
  const larger = figure.item("unbiased", labels.unbiased);
  figure.break();
  const storedMean = figure.item("stored-mean", labels.stored_mean, "prior");
  const storedVariance = figure.item("stored-variance", labels.stored_variance), steps = figure.item("steps", labels.steps);
  figure.break();
  const scale = figure.item("gamma", labels.gamma), shift = figure.item("beta", labels.beta);
  figure.break();
  const normalised = figure.item("normalised", labels.normalised, "posterior", "bnn-list");
  const trained = figure.item("training", labels.training, "posterior", "bnn-list");
  const evaluated = figure.item("evaluation", labels.evaluation, "prior", "bnn-list");

  const reset = () => {
    [gamma, beta, stored] = [given.gamma, given.beta, { mean: 0, variance: 1, steps: 0 }];
    points.fill(given.batch);
  };
  figure.button(labels.train, train);
  figure.button(labels.train_more, () => { for (let i = 0; i < 10; i++) train(); });
  const add = figure.button(labels.add, () => points.add(0));
  const remove = figure.button(labels.remove, points.pop);
  figure.button(labels.reset, reset);
  figure.svg.addEventListener("keydown", event => {
    if (event.key !== "Enter") return;
    train();
    figure.update();
  });
  reset();
  figure.start();
};
