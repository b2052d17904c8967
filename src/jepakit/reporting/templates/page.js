"use strict";
// Shared by the sections' scripts, which are inlined behind this one.

const readData = (id) => JSON.parse(document.getElementById(id).textContent);

document.documentElement.classList.add("scripted");
