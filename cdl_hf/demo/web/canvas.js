// Strokes on a white sheet. Triggers `input` with {strokes} when one ends and when strokes are taken back.
const canvas = element.querySelector("canvas"), pen = canvas.getContext("2d");
let strokes = [], drawing = false;
const place = (event) => {
  const box = canvas.getBoundingClientRect(), scale = canvas.width / box.width;
  return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
};
const paint = () => {
  pen.clearRect(0, 0, canvas.width, canvas.height);
  pen.lineWidth = 7; pen.lineCap = pen.lineJoin = "round"; pen.strokeStyle = "#1c2430";
  for (const stroke of strokes) {
    pen.beginPath();
    pen.moveTo(...stroke[0]);
    for (const point of stroke) pen.lineTo(...point);
    pen.stroke();
  }
};
const send = () => { paint(); trigger("input", {strokes}); };
canvas.addEventListener("pointerdown", (event) => {
  canvas.setPointerCapture(event.pointerId);
  drawing = true; strokes.push([place(event)]); paint();
});
canvas.addEventListener("pointermove", (event) => {
  if (drawing) { strokes[strokes.length - 1].push(place(event)); paint(); }
});
for (const end of ["pointerup", "pointercancel"])
  canvas.addEventListener(end, () => { if (drawing) { drawing = false; send(); } });
element.querySelector("[name=undo]").addEventListener("click", () => { strokes.pop(); send(); });
element.querySelector("[name=clear]").addEventListener("click", () => { strokes = []; send(); });
