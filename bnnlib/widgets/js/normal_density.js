// The density of one normal: where it is, how wide, how high, and how much of it lies within k scales.
const start = (root, given) => {
  const { labels, limits } = given;
  const range = limits[1] - limits[0], smallest = 5 * 10 ** -given.digits;
  let { loc, scale, within } = given;

  // P(|Z| < k) = 2 phi(k) (k + k^3 / 3 + k^5 / (3 5) + ...). All terms are positive, so nothing cancels.
  const area = k => {
    let term = k, sum = k;
    for (let n = 3; term > 1e-17 * sum; n += 2) sum += term *= k * k / n;
    return 2 * density(k, 0, 1) * sum;
  };
  const ceiling = height => {
    const power = 10 ** Math.floor(Math.log10(1.05 * height));
    return power * [1, 2, 5, 10].find(t => t * power >= 1.05 * height);
  };

  const across = (className, v) => figure.line(className, figure.x(limits[0]), figure.y(v), figure.x(limits[1]), figure.y(v));
  const figure = new Figure(root, given, [42, 14, 30, 28], () => {
    const height = density(loc, loc, scale), a = loc - within * scale, b = loc + within * scale;
    figure.top = ceiling(height);
    for (const [v, text] of ticks(0, figure.top, 5)) {
      if (v > 0) across("bnn-grid", v);
      figure.text("", figure.x(limits[0]) - 7, figure.y(v) + 4, "end", text);
    }
    if (figure.top >= 1) across("bnn-one", 1);
    figure.axis();
    figure.curve("bnn-shade bnn-posterior", loc, scale, a, b, true);
    figure.line("bnn-drop", figure.x(loc), figure.base, figure.x(loc), figure.y(height));
    figure.curve("bnn-line bnn-posterior", loc, scale);

    where(number(loc, given.digits));
    width(number(scale, given.digits));
    peak(number(height, 3) + (height > 1 ? labels.above_one : ""));
    inside(number(area(within), 4)).textContent = labels.area.replace("{k}", number(within, 2));
    ends(`${number(a, given.digits)} ${labels.to} ${number(b, given.digits)}`);
  });

  const side = () => loc + scale <= limits[1] ? 1 : -1;
  const edge = () => clamp(loc + within * scale, ...limits);
  figure.handle({ name: labels.loc, className: "bnn-posterior", min: limits[0], max: limits[1],
    get: () => loc, set: v => { loc = v; }, at: () => [figure.x(loc), figure.y(density(loc, loc, scale))] });
  figure.handle({ name: labels.scale, className: "bnn-posterior", min: smallest,
    max: Number((range / 2).toFixed(given.digits)), get: () => scale, set: v => { scale = v; }, slope: side,
    at: () => [figure.x(loc + side() * scale), figure.y(density(scale, 0, scale))] });
  figure.handle({ name: labels.within, className: "bnn-data", min: 0.1, max: 4, digits: 2, slope: () => 1 / scale,
    get: () => within, set: v => { within = v; }, at: () => [figure.x(edge()), figure.base] });

  const where = figure.item("loc", labels.loc), width = figure.item("scale", labels.scale);
  const peak = figure.item("height", labels.height), inside = figure.item("area", labels.area);
  const ends = figure.item("ends", labels.ends);
  figure.button(labels.reset, () => { ({ loc, scale, within } = given); });
  figure.start();
};
