"""How the page looks and what its one script does; both stand in the page itself."""

STYLE = """
:root { color-scheme: light dark; --paper:#fcfcfb; --card:#fff; --ink:#1c2024; --soft:#5f6b76; --line:#e3e6e8;
  --hover:#f3f5f6;
  --train:#a9bfdd; --train-ink:#3c669f; --valid:#d9822b; --test:#0d8a72; --warn:#9a4a00; --warn-paper:#fff4e5;
    --warn-line:#f0c48a;
  --bad:#b3372f; --link:#1d5fa8; }
@media (prefers-color-scheme: dark) { :root { --paper:#14171a; --card:#1b1f23; --ink:#e6e9ec; --soft:#9aa6b1;
  --line:#2d343a; --hover:#22272c;
  --train:#3f5e8a; --train-ink:#8db2e6; --valid:#f0a350; --test:#3fc4a6; --warn:#ffc37a; --warn-paper:#2d2416;
    --warn-line:#5f4a26;
  --bad:#f08a80; --link:#7db4f5; } }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; scroll-padding-top: 1rem; }
body { margin:0; background:var(--paper); color:var(--ink); font:15px/1.5 system-ui, -apple-system, "Segoe UI",
  Roboto, "Liberation Sans", sans-serif; }
a { color:var(--link); text-decoration-thickness:1px; text-underline-offset:2px; }
:focus-visible { outline:2px solid var(--link); outline-offset:2px; border-radius:3px; }
.skip { position:absolute; left:-99rem; }
.skip:focus { left:1rem; top:1rem; background:var(--card); padding:.5rem; z-index:2; }
.frame { max-width:78rem; margin:0 auto; padding:1.5rem 1.25rem 4rem; }
nav.toc { font-size:.87rem; margin-bottom:1.2rem; }
nav.toc ul { list-style:none; margin:0; padding:0; display:flex; flex-wrap:wrap; gap:.2rem 1rem; }
nav.toc .deep { display:none; }
@media (min-width:66rem) { .frame { display:grid; grid-template-columns:12.5rem minmax(0,1fr); gap:2.5rem; }
  nav.toc { position:sticky; top:1.5rem; align-self:start; max-height:calc(100vh - 3rem); overflow:auto; }
  nav.toc ul { display:block; } nav.toc li { margin:.15rem 0; }
  nav.toc .deep { display:block; padding-left:.75rem; border-left:1px solid var(--line); margin:.2rem 0 .6rem; }
  nav.toc .deep b { font-weight:500; color:var(--soft); font-size:.78rem; display:block; margin-top:.3rem; }
  nav.toc .deep a { color:var(--soft); text-decoration:none; display:block; overflow:hidden; text-overflow:ellipsis;
    white-space:nowrap; font-size:.82rem; } nav.toc .deep a:hover { color:var(--ink); } }
h1 { font-size:1.65rem; line-height:1.2; margin:0 0 .25rem; overflow-wrap:anywhere; letter-spacing:-.01em; }
h2 { font-size:1.15rem; margin:2.4rem 0 .75rem; padding-top:.2rem; }
h3 { font-size:.95rem; margin:1.1rem 0 .4rem; }
p { margin:.3rem 0; } .soft { color:var(--soft); } .small { font-size:.85rem; } .lead { max-width:46rem; }
code, .mono { font-family:ui-monospace, "SF Mono", Menlo, Consolas, "Liberation Mono", monospace; font-size:.88em;
  overflow-wrap:anywhere; }
.tiles { display:flex; flex-wrap:wrap; gap:1px; background:var(--line);
  border:1px solid var(--line); border-radius:8px; overflow:hidden; margin:1.2rem 0; }
.tile { flex:1 1 auto; background:var(--card); padding:.7rem .9rem; }
.tile b { display:block; font-size:1.25rem; font-weight:600; font-variant-numeric:tabular-nums; line-height:1.3; }
.tile span { color:var(--soft); font-size:.82rem; }
.findings { list-style:none; margin:1rem 0 0; padding:0; border:1px solid var(--warn-line);
  background:var(--warn-paper); border-radius:8px; }
.findings li { padding:.45rem .9rem; border-top:1px solid var(--warn-line); overflow-wrap:anywhere; }
.findings li:first-child { border-top:0; }
.findings li a { color:inherit; } .findings .tag { color:var(--warn); font-weight:600; margin-right:.5rem; }
.notes { margin-top:.6rem; } .notes summary { cursor:pointer; color:var(--soft); }
.notes ul { margin:.4rem 0; padding-left:1.2rem; }
.legend { display:flex; flex-wrap:wrap; gap:.2rem 1.1rem; font-size:.84rem; color:var(--soft); margin:.2rem 0 .5rem; }
.legend i { display:inline-block; width:.9rem; height:.65rem; border-radius:2px; margin-right:.35rem;
  vertical-align:baseline; background:var(--train); }
.legend i.g-valid { background:var(--valid); } .legend i.g-test { background:var(--test); }
.legend i.thin { height:3px; vertical-align:middle; }
.flow { display:grid; gap:.9rem; } .flow .name { font-weight:600; }
.flow .bar { display:flex; gap:2px; height:1.1rem; margin:.25rem 0; }
.flow .bar span { background:var(--train); min-width:3px; border-radius:2px; }
.flow .bar .bad { background:var(--bad); } .flow .bar .twice { background:var(--soft); }
.flow .bar .g-valid { background:var(--valid); } .flow .bar .g-test { background:var(--test); }
svg.chart { display:block; width:100%; height:3.1rem; overflow:visible; border-bottom:1px solid var(--line); }
svg.wide { height:8rem; } svg.low { height:4.5rem; }
svg rect { fill:var(--train); } svg .g-valid rect { fill:var(--valid); } svg .g-test rect { fill:var(--test); }
svg path { fill:none; stroke:var(--train-ink); stroke-width:1.6; vector-effect:non-scaling-stroke;
  stroke-linejoin:round; } svg path.g-valid { stroke:var(--valid); } svg path.g-test { stroke:var(--test); }
svg path.trend { stroke-linecap:round; stroke-width:2; }
.axis { display:flex; justify-content:space-between; gap:1rem; white-space:nowrap; font-size:.76rem;
  color:var(--soft);
  font-variant-numeric:tabular-nums; }
.axis span { overflow:hidden; text-overflow:ellipsis; min-width:0; } .axis span:last-child { flex-shrink:.5; }
.chart-title { font-size:.84rem; color:var(--soft); margin:.7rem 0 .15rem; }
.pair { display:grid; gap:0 2rem; } @media (min-width:48rem) { .pair { grid-template-columns:3fr 1.2fr; } }
.tools { display:flex; gap:.6rem; flex-wrap:wrap; align-items:center; margin:.6rem 0; }
.tools[hidden] { display:none; }
.tools input { font:inherit; padding:.35rem .6rem; border:1px solid var(--line); border-radius:6px;
  background:var(--card); color:inherit; flex:1 1 14rem; max-width:24rem; }
.tools button { font:inherit; font-size:.87rem; padding:.35rem .75rem; border:1px solid var(--line);
  border-radius:6px; background:var(--card); color:inherit; cursor:pointer; }
  .tools button:hover { background:var(--hover); }
.columns { border:1px solid var(--line); border-radius:8px; background:var(--card); overflow:hidden; }
details.column { border-top:1px solid var(--line); } details.column:first-child { border-top:0; }
details.column[hidden] { display:none; }
details.column > summary { display:grid; grid-template-columns:minmax(0,1.25fr) minmax(0,1fr); gap:.35rem 1.25rem;
  padding:.7rem .9rem; cursor:pointer; list-style:none; align-items:center; }
details.column > summary::-webkit-details-marker { display:none; }
details.column > summary:hover { background:var(--hover); }
details.column[open] > summary { border-bottom:1px dashed var(--line); }
summary .name { font-weight:600; overflow-wrap:anywhere; }
summary .name::before { content:"▸"; color:var(--soft); display:inline-block; width:1em; }
details[open] > summary .name::before { content:"▾"; }
summary .about { color:var(--soft); font-size:.84rem; padding-left:1em; }
summary .facts { grid-column:1 / -1; display:flex; flex-wrap:wrap; gap:.1rem 1.1rem; font-size:.82rem;
  color:var(--soft); padding-left:1.1em; font-variant-numeric:tabular-nums; }
@media (min-width:56rem) { details.column > summary { grid-template-columns:minmax(0,1.3fr) 15rem minmax(0,1fr); }
summary .facts { grid-column:auto; flex-direction:column; padding:0; } }
.facts .hot { color:var(--warn); font-weight:600; }
.body { padding:.4rem .9rem 1.2rem; }
.scroll { overflow-x:auto; margin:.4rem 0; }
table { border-collapse:collapse; font-size:.86rem; font-variant-numeric:tabular-nums; width:100%; }
th, td { text-align:right; padding:.25rem .6rem; border-bottom:1px solid var(--line); white-space:nowrap;
  vertical-align:top; } th { color:var(--soft); font-weight:500; white-space:normal; vertical-align:bottom; }
th:first-child, td:first-child { text-align:left; padding-left:0; } th:last-child, td:last-child { padding-right:0; }
td.text, th.text { text-align:left; white-space:normal; overflow-wrap:anywhere; min-width:8rem; }
tr.reserved td { color:var(--soft); font-style:italic; } td.share { position:relative; min-width:6.5rem; }
td.share i { position:absolute; right:.6rem; bottom:1px; height:3px; background:var(--train); border-radius:1px;
  max-width:100%; }
.sample { margin:.3rem 0 .5rem; padding:.4rem .6rem; background:var(--hover); border-radius:5px;
  overflow-wrap:anywhere; }
footer { margin-top:3rem; border-top:1px solid var(--line); padding-top:.8rem; }
dl.facts-list { display:grid; grid-template-columns:max-content minmax(0,1fr); gap:.15rem 1rem; margin:.4rem 0;
  font-size:.88rem; } dl.facts-list dt { color:var(--soft); } dl.facts-list dd { margin:0; overflow-wrap:anywhere; }
@media (max-width:30rem) { .frame { padding:1rem .9rem 3rem; } dl.facts-list { grid-template-columns:1fr; gap:0; }
dl.facts-list dd { margin-bottom:.4rem; } details.column > summary { grid-template-columns:minmax(0,1fr); }
h1 { font-size:1.35rem; } }
@media print { :root { --paper:#fff; --card:#fff; --ink:#000; --soft:#444; --line:#ccc; --train:#a9bfdd;
  --train-ink:#3c669f; --valid:#d9822b; --test:#0d8a72; } nav.toc, .tools, .skip { display:none !important; }
  .frame { display:block; padding:0; max-width:none; } body { font-size:10.5pt; }
  details.column, .tile, .findings li, .flow > div { break-inside:avoid; }
  * { print-color-adjust:exact; -webkit-print-color-adjust:exact; } }
"""

SCRIPT = """
(() => {
  const columns = [...document.querySelectorAll('details.column')];
  const find = document.getElementById('find'), count = document.getElementById('count'),
    all = document.getElementById('all');
  document.querySelectorAll('.tools').forEach(tools => { tools.hidden = false; });
  const filter = () => {
    const words = find.value.toLowerCase().split(/\\s+/).filter(Boolean);
    let shown = 0;
    for (const column of columns) {
      const fits = words.every(word => column.dataset.words.includes(word));
      column.hidden = !fits;
      shown += fits;
    }
    count.textContent = words.length ? shown + ' of ' + columns.length : columns.length + ' columns';
  };
  find.addEventListener('input', filter);
  all.addEventListener('click', () => {
    const open = columns.some(column => !column.hidden && !column.open);
    for (const column of columns) if (!column.hidden) column.open = open;
    all.textContent = open ? 'Close all' : 'Open all';
  });
  const show = () => {
    const named = location.hash ? document.getElementById(decodeURIComponent(location.hash.slice(1))) : null;
    if (named && named.matches('details')) { named.hidden = false; named.open = true; named.scrollIntoView(); }
  };
  addEventListener('hashchange', show);
  let before = [];
  addEventListener('beforeprint', () => { before = columns.map(column => column.open);
    for (const column of columns) column.open = true; });
  addEventListener('afterprint', () => columns.forEach((column, place) => { column.open = before[place]; }));
  filter();
  show();
})();
"""
