// A normal prior on a mean, observations with known noise, and the posterior of the mean.
const start = (root, given) => {
  const { labels, limits, noise, most } = given;
  const range = limits[1] - limits[0], step = 10 ** -given.digits, finer = given.digits + 1;
  const smallest = 5 * step, largest = Number((range / 2).toFixed(given.digits));
  let loc = given.loc, scale = given.scale, data = [];

  const posterior = () => {
    const precision = scale ** -2 + data.length * noise ** -2;
    const sum = data.reduce((total, o) => total + o.value, 0);
    return { loc: (loc * scale ** -2 + sum * noise ** -2) / precision, scale: precision ** -0.5 };
  };
  // p(D) = p(D | mu) p(mu) / p(mu | D) holds at every mu. At the posterior's centre none of the three underflows.
  const logEvidence = after => data.reduce((total, o) => total + logDensity(o.value, after.loc, noise), 0)
    + logDensity(after.loc, loc, scale) - logDensity(after.loc, after.loc, after.scale);

  const figure = new Figure(root, given, [16, 16, 26, 66], () => {
    const after = posterior(), n = data.length, spread = noise / Math.sqrt(n);
    const mean = data.reduce((total, o) => total + o.value, 0) / n;
    figure.top = 1.08 * Math.max(density(0, 0, scale), density(0, 0, after.scale), n ? density(0, 0, spread) : 0);
    svg("rect", { class: "bnn-strip", x: figure.x(limits[0]), y: figure.height - 34, width: range * figure.unit,
      height: 32, rx: 6 }, figure.back);
    figure.axis();
    figure.curve("bnn-shade bnn-posterior", after.loc, after.scale, undefined, undefined, true);
    if (n) figure.curve("bnn-line bnn-likelihood", mean, spread);
    figure.curve("bnn-line bnn-prior", loc, scale);
    figure.curve("bnn-line bnn-posterior", after.loc, after.scale);

    for (const o of data) figure.line("bnn-rug", figure.x(o.value), figure.base, figure.x(o.value), figure.base - 10);

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

  const observe = value => {
    if (data.length >= most) return;
    const o = { value: Number(clamp(value, ...limits).toFixed(given.digits)) };
    o.handle = figure.handle({ name: labels.observation, className: "bnn-data", min: limits[0], max: limits[1],
      get: () => o.value, set: v => { o.value = v; }, at: () => [figure.x(o.value), figure.height - 18],
      remove: () => { forget(o); (data.length ? data[data.length - 1].handle.node : add).focus(); figure.update(); } });
    data.push(o);
  };
  const forget = o => {
    data.splice(data.indexOf(o), 1);
    figure.drop(o.handle);
  };
  const reset = () => {
    while (data.length) forget(data[0]);
    [loc, scale] = [given.loc, given.scale];
    given.data.forEach(observe);
  };

  const prior = figure.item("prior", labels.prior), likelihood = figure.item("likelihood", labels.likelihood);
  const result = figure.item("posterior", labels.posterior), evidence = figure.item("evidence", labels.evidence);
  const add = figure.button(labels.add, () => observe(posterior().loc));
  const remove = figure.button(labels.remove, () => forget(data[data.length - 1]));
  figure.button(labels.reset, reset);
  figure.svg.addEventListener("click", event => {
    if (!event.target.classList.contains("bnn-strip")) return;
    const box = figure.svg.getBoundingClientRect();
    observe(limits[0] + (event.clientX - box.left - figure.x(limits[0])) / figure.unit);
    figure.update();
  });
  reset();
  figure.start();
};
