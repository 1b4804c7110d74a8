// Chooses the task. Triggers `input` with {task}, which starts at 1; playing goes from task to task up to the last.
const slider = element.querySelector("input"), shown = element.querySelector("output"), play = element.querySelector("button");
let timer = null;
const go = (task) => { slider.value = task; shown.value = slider.value; trigger("input", {task: Number(slider.value)}); };
const stop = () => { clearInterval(timer); timer = null; play.textContent = "Play"; };
slider.addEventListener("input", () => { stop(); go(slider.value); });
play.addEventListener("click", () => {
  if (timer) return stop();
  go(slider.value === slider.max ? 1 : Number(slider.value) + 1);
  play.textContent = "Stop";
  timer = setInterval(() => {
    if (slider.value === slider.max) return stop();
    go(Number(slider.value) + 1);
  }, 1200);
});
