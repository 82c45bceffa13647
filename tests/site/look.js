// What the tests ask of a page. Each function returns a list of complaints.
const look = {
  // Formulas that MathJax left alone, or set as an error. An undefined macro is set in red.
  formulas() {
    const bad = [];
    const sources = document.querySelectorAll("article .math").length, set = document.querySelectorAll("article mjx-container").length;
    if (set < sources) bad.push(`${sources} formulas, ${set} of them set`);
    for (const e of document.querySelectorAll("mjx-merror, [data-mjx-error], mjx-mtext[style*='red']")) bad.push("error in a formula: " + e.textContent);
    const raw = /\$\$|\\\(|\\\[|\\begin\{|\\[a-z]{2,}\b|\$[^\s$][^$]*\$/;
    const walk = document.createTreeWalker(document.querySelector("article"), NodeFilter.SHOW_TEXT);
    while (walk.nextNode()) {
      const text = walk.currentNode;
      if (!text.parentElement.closest("pre, code, script, style, mjx-container") && raw.test(text.data)) bad.push("raw: " + text.data.trim().slice(0, 60));
    }
    return bad;
  },

  // Figures that do not show, or that say nothing to who cannot see them. Left to itself, the notebook's parser
  // takes the file's name for a description.
  figures() {
    const bad = [];
    for (const img of document.querySelectorAll("article img")) {
      const name = img.getAttribute("src");
      if (!img.complete || img.naturalWidth === 0) bad.push("not loaded: " + name);
      const alt = (img.getAttribute("alt") || "").trim();
      if (!alt || alt.includes(name.split("/").pop())) bad.push("no description: " + name);
      // In a folded solution a figure has no size.
      const stretch = img.clientWidth * img.naturalHeight / (img.clientHeight * img.naturalWidth);
      if (img.clientHeight && Math.abs(stretch - 1) > 0.02) bad.push("out of proportion: " + name);
    }
    return bad;
  },

  // What sticks out of a narrow screen.
  overflow() {
    const width = document.documentElement.clientWidth;
    if (document.documentElement.scrollWidth <= width) return [];
    const scrolls = e => e && (getComputedStyle(e).overflowX !== "visible" || scrolls(e.parentElement));
    const out = [...document.querySelectorAll("article *")].filter(e => e.getBoundingClientRect().right > width && !scrolls(e.parentElement));
    return [`${document.documentElement.scrollWidth} px wide on ${width}`, ...out.slice(0, 5).map(e => e.outerHTML.slice(0, 90))];
  },

  // Text whose contrast with what lies behind it is below what WCAG asks (4.5; 3 for large text).
  contrast() {
    const paint = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    const rgba = css => { paint.clearRect(0, 0, 1, 1); paint.fillStyle = css; paint.fillRect(0, 0, 1, 1); return [...paint.getImageData(0, 0, 1, 1).data]; };
    const over = (a, b) => a.slice(0, 3).map((v, i) => v * a[3] / 255 + b[i] * (1 - a[3] / 255)).concat(255);
    const light = c => { const [r, g, b] = c.map(v => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4); return .2126 * r + .7152 * g + .0722 * b; };
    const behind = e => {
      if (!e) return rgba("white");
      const c = rgba(getComputedStyle(e).backgroundColor);
      return c[3] === 255 ? c : over(c, behind(e.parentElement));
    };
    const bad = new Set(), walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walk.nextNode()) {
      const e = walk.currentNode.parentElement;
      if (!walk.currentNode.data.trim() || !e.checkVisibility({ visibilityProperty: true, opacityProperty: true })) continue;
      if (e.closest("script, style, noscript, mjx-assistive-mml, .headerlink, .skip-link, button, .toggle-hidden > :not(.admonition-title)")) continue;
      const style = getComputedStyle(e), back = behind(e), a = light(over(rgba(style.color), back)), b = light(back);
      const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05), large = parseFloat(style.fontSize) >= 24;
      if (ratio < (large ? 3 : 4.5)) bad.add(`${ratio.toFixed(2)}: ${e.className || e.tagName}: ${walk.currentNode.data.trim().slice(0, 40)}`);
    }
    return [...bad].slice(0, 12);
  },

  // How bright the page itself is, 0 to 1.
  brightness() {
    const [r, g, b] = getComputedStyle(document.body).backgroundColor.match(/[\d.]+/g).map(Number);
    return (r + g + b) / 765;
  },

  // Figures that keep their white paper in the dark, and heat maps that lost their colours.
  dark_figures() {
    return [...document.querySelectorAll("article img:not(.only-light, .only-dark)")].filter(img =>
      (getComputedStyle(img).filter === "none") !== img.classList.contains("dark-light")).map(img => img.outerHTML.slice(0, 90));
  },
};
