// Makes the figures of the page interactive, each when it comes near the screen.  The static picture stays until then,
// and for print, so that the page is whole without this script.
(() => {
  "use strict";
  const colours = JSON.parse(document.getElementById("pb-colours").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const hidden = new Set();
  const live = new Map(); // figure -> { still, view }

  function paint(text) {
    const style = getComputedStyle(document.documentElement);
    return text.replace(/#0[abc][0-9a-f]{4}/g, (placeholder) => {
      const name = colours[placeholder];
      if (!name) return placeholder;
      return name.startsWith("--") ? style.getPropertyValue(name).trim() : name;
    });
  }

  async function enliven(figure) {
    const plot = figure.querySelector(".plot");
    const before = live.get(figure);
    const still = before ? before.still : plot.innerHTML;
    if (before && before.view) before.view.finalize();
    const box = document.createElement("div");
    const spec = JSON.parse(paint(figure.querySelector("script.spec").textContent));
    const theme = dark.matches ? "dark" : undefined;
    const result = await vegaEmbed(box, spec, {
      actions: false, renderer: "svg", ast: true, logLevel: 1 /* errors only */, tooltip: { theme: theme }, // ast: no eval, as the page's policy asks
    });
    plot.replaceChildren(...box.childNodes);
    plot.classList.add("live");
    live.set(figure, { still: still, view: result.view });
    result.view.signal("hidden_engines", [...hidden]);
    await result.view.runAsync();
  }

  function rest(figure) {
    const state = live.get(figure);
    if (!state) return;
    state.view.finalize();
    const plot = figure.querySelector(".plot");
    plot.innerHTML = state.still;
    plot.classList.remove("live");
    live.delete(figure);
  }

  const near = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      near.unobserve(entry.target);
      enliven(entry.target).catch((error) => console.error(entry.target.id, error));
    }
  }, { rootMargin: "400px" });

  const figures = [...document.querySelectorAll("figure")].filter((f) => f.querySelector("script.spec"));
  figures.forEach((figure) => near.observe(figure));
  dark.addEventListener("change", () => [...live.keys()].forEach((figure) => enliven(figure)));
  addEventListener("beforeprint", () => [...live.keys()].forEach(rest));
  addEventListener("afterprint", () => figures.forEach((figure) => near.observe(figure)));

  // The legend: a button an engine, pressed while the engine is shown.
  for (const item of document.querySelectorAll(".key li[data-engine]")) {
    const button = document.createElement("button");
    button.type = "button";
    button.setAttribute("aria-pressed", "true");
    button.title = "Show or hide in the charts";
    button.append(...item.childNodes);
    item.append(button);
    button.addEventListener("click", () => {
      const engine = item.dataset.engine;
      hidden.has(engine) ? hidden.delete(engine) : hidden.add(engine);
      for (const other of document.querySelectorAll(".key li[data-engine] button")) {
        other.setAttribute("aria-pressed", String(!hidden.has(other.parentElement.dataset.engine)));
      }
      for (const { view } of live.values()) view.signal("hidden_engines", [...hidden]).runAsync();
    });
  }
})();
