// A page of a run in progress asks for a newer one, and takes over what changed; what is zoomed in stays so.
(() => {
  const ASK_AFTER = 3000; // milliseconds
  const redrawn = new Set(["summary", "comparison", "probes"]); // sections without a script of their own
  let shownPage = null;
  let tag = "";

  const takeSection = (section, older) => {
    const here = document.getElementById(section.id);
    const group = groups.find((each) => each.section === here);
    const titles = (each) => [...each.querySelectorAll(".chart h3")].map((head) => head.textContent).join("\n");
    if (group && titles(section) === titles(here)) return group.take(section);
    if (older && older.innerHTML === section.innerHTML) return true;
    if (!here || !redrawn.has(section.id)) return false;
    here.replaceWith(document.adoptNode(section));
    section.querySelectorAll("table.sortable").forEach(sortable);
    return true;
  };

  const takePage = (text) => {
    const newer = new DOMParser().parseFromString(text, "text/html");
    const found = [...newer.querySelectorAll("section")];
    const axes = newer.getElementById("axes");
    document.getElementById("axes").textContent = axes.textContent;
    const same = found.length === document.querySelectorAll("section").length;
    const older = (id) => shownPage && shownPage.getElementById(id);
    const keep = new DOMParser().parseFromString(text, "text/html");
    if (!same || !found.every((section) => takeSection(section, older(section.id)))) location.reload();
    shownPage = keep;
  };

  const said = document.querySelector(".live");
  const ask = async () => {
    try {
      const answer = await fetch("/", { cache: "no-store", headers: tag ? { "If-None-Match": tag } : {} });
      if (answer.status === 200) {
        const text = await answer.text();
        if (tag) takePage(text);
        else shownPage = new DOMParser().parseFromString(text, "text/html");
        tag = answer.headers.get("ETag");
      }
      said.textContent = `live, asked at ${new Date().toLocaleTimeString()}`;
    } catch {
      said.textContent = "the server has ended; this is the last it said";
    }
    setTimeout(ask, ASK_AFTER);
  };
  ask();
})();
