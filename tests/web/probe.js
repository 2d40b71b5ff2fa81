// Measures each framed page once all are loaded, and writes the measures into #seen as JSON.
addEventListener("load", () => {
  const box = (element) => {
    const { left, right, width, height } = element.getBoundingClientRect();
    return { left, right, width, height };
  };
  const seen = [...document.querySelectorAll("iframe")].map((frame) => {
    const page = frame.contentDocument, view = frame.contentWindow;
    const ink = (element, key) => view.getComputedStyle(element)[key];
    return {
      width: Number(frame.width),
      scrolls: page.documentElement.scrollWidth - page.documentElement.clientWidth,
      background: ink(page.body, "backgroundColor"),
      color: ink(page.body, "color"),
      text: page.body.innerText,
      figures: [...page.querySelectorAll("figure")].map((figure) => ({
        name: figure.id,
        svg: box(figure.querySelector("svg")),
        label: figure.querySelector("svg").getAttribute("aria-label"),
        words: [...figure.querySelectorAll("svg text")].map((text) => text.textContent),
        inks: [...new Set([...figure.querySelectorAll("svg text")].map((text) => ink(text, "fill")))],
        images: [...figure.querySelectorAll("svg image")].map(box),
        outside: [...figure.querySelectorAll("svg text")].filter((text) => {
          const own = box(text), whole = box(figure.querySelector("svg"));
          return own.left < whole.left - 2 || own.right > whole.right + 2;
        }).map((text) => text.textContent),
      })),
      links: [...page.querySelectorAll("a")].map((link) => link.getAttribute("href")),
      loads: [...page.querySelectorAll("[src], link[href], script")].map((element) => element.outerHTML.slice(0, 120)),
    };
  });
  document.getElementById("seen").textContent = JSON.stringify(seen);
});
