// A normal q over a target p with two modes: the Kullback-Leibler divergence both ways, and the best q of each.
const start = (root, given) => {
  const { labels, limits, mode } = given;
  const range = limits[1] - limits[0], smallest = 5 * 10 ** -given.digits;
  let { loc, scale, apart } = given, marks;

  // p(x): two normals of one scale with the same weight, `apart` from each other, around 0.
  const logTarget = x => {
    const a = logDensity(x, -apart / 2, mode), b = logDensity(x, apart / 2, mode);
    return Math.max(a, b) + Math.log1p(Math.exp(-Math.abs(a - b))) - Math.LN2;
  };
  // The mean of f(x, z) for x = m + s z and z normal, by the trapezoidal rule, which is as good as exact for such f.
  const expect = (m, s, n, f) => {
    const step = 20 / n;
    let sum = 0;
    for (let i = 0; i <= n; i++) {
      const z = -10 + i * step;
      sum += density(z, 0, 1) * f(m + s * z);
    }
    return sum * step;
  };
  const reverse = (m, s) => expect(m, s, 6000, x => logDensity(x, m, s) - logTarget(x));
  const forward = (m, s) => expect(apart / 2, mode, 2000, x => logTarget(x))
    + 0.5 * LOG_2PI + Math.log(s) + (mode ** 2 + apart ** 2 / 4 + m ** 2) / (2 * s ** 2);

  // KL(p || q) is least where q has the moments of p.
  const bestForward = () => ({ loc: 0, scale: Math.hypot(mode, apart / 2) });
  // KL(q || p) is least where E_q[g] = 0 and E_q[h] = -1 / scale^2: g is the slope of log p, h its curvature. Newton's
  // step for the location and that equation for the scale, half of the way each time.
  const descend = (m, s) => {
    let precision = s ** -2;
    const pull = x => Math.tanh(x * apart / (2 * mode ** 2)) * apart / 2;
    for (let i = 0; i < 400; i++) {
      const sd = precision ** -0.5;
      const slope = expect(m, sd, 400, x => (pull(x) - x) / mode ** 2);
      const bend = expect(m, sd, 400, x => (1 - (apart ** 2 / 4 - pull(x) ** 2) / mode ** 2) / mode ** 2);
      precision = 0.5 * (precision + Math.max(bend, 0.1 * precision));
      const move = 0.5 * slope / precision;
      m += move;
      if (Math.abs(move) < 1e-9 && Math.abs(bend / precision - 1) < 1e-9) break;
    }
    return { loc: m, scale: precision ** -0.5, least: reverse(m, precision ** -0.5) };
  };
  // There may be a least value on each mode and one between them, so both are looked for and the lower one is kept.
  const bestReverse = () => {
    const wide = bestForward(), on = descend(apart / 2, mode), between = descend(wide.loc, wide.scale);
    return on.least < between.least ? on : between;
  };
  const solve = () => {
    const f = bestForward();
    marks = { apart, forward: { ...f, least: forward(f.loc, f.scale) }, reverse: bestReverse() };
  };

  const figure = new Figure(root, given, [16, 16, 26, 28], () => {
    if (!marks || marks.apart !== apart) solve();
    const { forward: f, reverse: r } = marks, p = x => Math.exp(logTarget(x));
    const two = Math.abs(r.loc) > 1e-3;
    figure.top = 1.1 * Math.max(p(apart / 2), p(0), ...[scale, f.scale, r.scale].map(s => density(0, 0, s)));
    figure.axis();
    figure.graph("bnn-shade bnn-likelihood", p, undefined, undefined, true);
    figure.curve("bnn-best bnn-prior", f.loc, f.scale);
    for (const m of two ? [-r.loc, r.loc] : [0]) figure.curve("bnn-best bnn-posterior", m, r.scale);
    figure.curve("bnn-line bnn-data", loc, scale);

    const pair = (m, s) => `${number(m, given.digits)} \u00b1 ${number(s, given.digits)}`;
    normal(pair(loc, scale));
    modes(number(apart, given.digits));
    reverseNow(number(reverse(loc, scale), 3));
    reverseLeast(number(r.least, 3));
    reverseAt((two ? [-r.loc, r.loc] : [0]).map(m => pair(m, r.scale)).join(", "));
    forwardNow(number(forward(loc, scale), 3));
    forwardLeast(number(f.least, 3));
    forwardAt(pair(f.loc, f.scale));
  });

  const side = () => loc + scale <= limits[1] ? 1 : -1;
  figure.handle({ name: labels.loc, className: "bnn-data", min: limits[0], max: limits[1],
    get: () => loc, set: v => { loc = v; }, at: () => [figure.x(loc), figure.y(density(loc, loc, scale))] });
  figure.handle({ name: labels.scale, className: "bnn-data", min: smallest, max: Number((range / 2).toFixed(given.digits)),
    get: () => scale, set: v => { scale = v; }, slope: side,
    at: () => [figure.x(loc + side() * scale), figure.y(density(scale, 0, scale))] });
  figure.handle({ name: labels.apart, className: "bnn-likelihood", min: 0, max: given.widest,
    get: () => apart, set: v => { apart = v; }, slope: () => 2, at: () => [figure.x(apart / 2), figure.base] });

  const normal = figure.item("normal", labels.normal, "data"), modes = figure.item("apart", labels.apart);
  figure.break();
  const reverseNow = figure.item("reverse", labels.reverse, "posterior", "bnn-dashed");
  const reverseLeast = figure.item("reverse-least", labels.least), reverseAt = figure.item("reverse-at", labels.at);
  figure.break();
  const forwardNow = figure.item("forward", labels.forward, "prior", "bnn-dashed");
  const forwardLeast = figure.item("forward-least", labels.least), forwardAt = figure.item("forward-at", labels.at);
  const go = o => {
    loc = Number(o.loc.toFixed(given.digits));
    scale = Number(o.scale.toFixed(given.digits));
  };
  // To the optimum on the side where q is.
  figure.button(labels.to_reverse, () => go({ ...marks.reverse, loc: (loc < 0 ? -1 : 1) * marks.reverse.loc }));
  figure.button(labels.to_forward, () => go(marks.forward));
  figure.button(labels.reset, () => { ({ loc, scale, apart } = given); });
  figure.start();
};
