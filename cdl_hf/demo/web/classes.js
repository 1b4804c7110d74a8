// Hides the classes without the text that is searched for, and the tasks without any class left.
const search = element.querySelector("input"), status = element.querySelector("[role=status]");
search.addEventListener("input", () => {
  const wanted = search.value.trim().toLowerCase();
  let count = 0;
  for (const task of element.querySelectorAll("section")) {
    const names = [...task.querySelectorAll("li")];
    for (const name of names) name.hidden = !name.textContent.toLowerCase().includes(wanted);
    const found = names.filter((name) => !name.hidden).length;
    task.hidden = !found;
    count += found;
  }
  status.textContent = wanted ? `${count} found` : "";
});
