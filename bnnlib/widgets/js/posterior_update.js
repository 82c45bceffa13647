// A normal prior on a mean, observations with known noise, and the posterior of the mean.
const start = (root, given) => {
  const { labels, limits, noise, most } = given;
  const range = limits[1] - limits[0], step = 10 ** -given.digits, finer = given.digits + 1;
  const smallest = 5 * step, largest = Number((range / 2).toFixed(given.digits));
  let { loc, scale } = given;

  const posterior = () => {
    const data = points.values(), sum = data.reduce((total, x) => total + x, 0);
    const precision = scale ** -2 + data.length * noise ** -2;
    return { loc: (loc * scale ** -2 + sum * noise ** -2) / precision, scale: precision ** -0.5 };
  };
  // p(D) = p(D | mu) p(mu) / p(mu | D) holds at every mu. At the posterior's centre none of the three underflows.
  const logEvidence = after => points.values().reduce((total, x) => total + logDensity(x, after.loc, noise), 0)
    + logDensity(after.loc, loc, scale) - logDensity(after.loc, after.loc, after.scale);

  const figure = new Figure(root, given, [16, 16, 26, 66], () => {
    const after = posterior(), data = points.values(), n = data.length, spread = noise / Math.sqrt(n);
    const mean = data.reduce((total, x) => total + x, 0) / n;
    figure.top = 1.08 * Math.max(density(0, 0, scale), density(0, 0, after.scale), n ? density(0, 0, spread) : 0);
    points.strip();
    figure.axis();
    figure.curve("bnn-shade bnn-posterior", after.loc, after.scale, undefined, undefined, true);
    if (n) figure.curve("bnn-line bnn-likelihood", mean, spread);
    figure.curve("bnn-line bnn-prior", loc, scale);
    figure.curve("bnn-line bnn-posterior", after.loc, after.scale);

    for (const x of data) figure.line("bnn-rug", figure.x(x), figure.base, figure.x(x), figure.base - 10);

    const pair = (m, s, digits) => `${number(m, digits)} \u00b1 ${number(s, digits)}`;
    prior(pair(loc, scale, given.digits));
    likelihood(n ? pair(mean, spread, finer) : labels.none).textContent = `${labels.likelihood}, n = ${n}`;
    result(pair(after.loc, after.scale, finer));
    evidence(n ? number(logEvidence(after), 3) : labels.none);
    add.disabled = n >= most;
    remove.disabled = n === 0;
  });

  const side = () => loc + scale <= limits[1] ? 1 : -1;
  figure.handle({ name: labels.prior_loc, className: "bnn-prior", min: limits[0], max: limits[1],
    get: () => loc, set: v => { loc = v; }, at: () => [figure.x(loc), figure.y(density(loc, loc, scale))] });
  figure.handle({ name: labels.prior_scale, className: "bnn-prior", min: smallest, max: largest,
    get: () => scale, set: v => { scale = v; }, slope: side,
    at: () => [figure.x(loc + side() * scale), figure.y(density(scale, 0, scale))] });

  const points = figure.points({ name: labels.observation, y: () => figure.height - 18, least: 0, most, spare: () => add });
  const reset = () => {
    [loc, scale] = [given.loc, given.scale];
    points.fill(given.data);
  };

  const prior = figure.item("prior", labels.prior), likelihood = figure.item("likelihood", labels.likelihood);
  const result = figure.item("posterior", labels.posterior), evidence = figure.item("evidence", labels.evidence);
  const add = figure.button(labels.add, () => points.add(posterior().loc));
  const remove = figure.button(labels.remove, points.pop);
  figure.button(labels.reset, reset);
  reset();
  figure.start();
};
