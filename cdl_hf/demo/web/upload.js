// An image to choose or to drop. Triggers `input` with {path} when it has been sent, or {problem} if it is not sent.
const area = element.querySelector("label"), input = element.querySelector("input"), status = element.querySelector("p");
const number = (value) => value.toLocaleString("en");
let latest = 0;
const pixelsOf = (file) => new Promise((resolve) => { // 0 where the browser does not know the format
  const image = new Image(), url = URL.createObjectURL(file);
  const end = (pixels) => { URL.revokeObjectURL(url); resolve(pixels); };
  image.onload = () => end(image.naturalWidth * image.naturalHeight);
  image.onerror = () => end(0);
  image.src = url;
});
const problemOf = async (file) => {
  if (!file.size) return "The file is empty.";
  if (file.size > props.max_bytes) return `The file has ${number(file.size)} bytes, more than the limit of ${number(props.max_bytes)}.`;
  const pixels = await pixelsOf(file);
  return pixels > props.max_pixels ? `The image has ${number(pixels)} pixels, more than the limit of ${number(props.max_pixels)}.` : "";
};
const take = async (file) => {
  const mine = ++latest;
  status.textContent = `Sending ${file.name} ...`;
  let result = {problem: await problemOf(file)};
  try {
    if (!result.problem) result = {path: (await upload(file)).path};
  } catch (error) {
    result = {problem: "The file could not be sent."};
  }
  if (mine !== latest) return;
  status.textContent = result.problem ? "" : file.name;
  trigger("input", result);
};
input.addEventListener("change", () => { if (input.files.length) take(input.files[0]); input.value = ""; });
for (const name of ["dragenter", "dragover", "dragleave", "drop"])
  area.addEventListener(name, (event) => {
    event.preventDefault();
    area.classList.toggle("over", ["dragenter", "dragover"].includes(name));
    if (name === "drop" && event.dataTransfer.files.length) take(event.dataTransfer.files[0]);
  });
