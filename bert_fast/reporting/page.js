// Shows the value of the point of a line chart that is nearest to the pointer. The page works without it.
"use strict";
(() => {
  const tip = document.getElementById("tip");
  const numbers = new Intl.NumberFormat("en", { maximumSignificantDigits: 4 });
  let hot = null;

  function scale(text) {
    const [low, high, log, ...unit] = text.split(" ");
    const [a, b] = [Number(low), Number(high)];
    const value = log === "1" ? (share) => a * (b / a) ** share : (share) => a + share * (b - a);
    return { value, unit: unit.join(" ") };
  }

  function clear() {
    tip.hidden = true;
    if (hot) hot.classList.remove("hot");
    hot = null;
  }

  function nearest(svg, x, y) {
    let best = null;
    for (const group of svg.querySelectorAll("g[data-label]")) {
      for (const [, left, top] of group.querySelector(".line").getAttribute("d").matchAll(/[ML]([^ ]+) ([^ML]+)/g)) {
        const distance = (left * svg.ratio - x) ** 2 + (top - y) ** 2;
        if (!best || distance < best.distance) best = { distance, group, left: Number(left), top: Number(top) };
      }
    }
    return best;
  }

  for (const svg of document.querySelectorAll(".chart .area > svg")) {
    const [, , width, height] = svg.getAttribute("viewBox").split(" ").map(Number);
    const across = scale(svg.dataset.x);
    const up = scale(svg.dataset.y);
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      svg.ratio = box.width / width;
      const found = nearest(svg, event.clientX - box.left, event.clientY - box.top);
      clear();
      if (!found) return;
      hot = found.group;
      hot.classList.add("hot");
      const x = numbers.format(across.value(found.left / width));
      const y = numbers.format(up.value(1 - found.top / height));
      tip.textContent = `${found.group.dataset.label}: ${y} at ${x} ${across.unit}`;
      tip.hidden = false;
      const left = box.left + found.left * svg.ratio + 12;
      tip.style.left = `${Math.max(4, Math.min(left, innerWidth - tip.offsetWidth - 4))}px`;
      tip.style.top = `${Math.max(4, box.top + found.top - tip.offsetHeight - 10)}px`;
    });
    svg.addEventListener("pointerleave", clear);
  }
})();
