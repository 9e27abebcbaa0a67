const table = document.getElementById('parameters'), body = table.tBodies[0], rows = [...body.rows];
const texts = rows.map(row => row.textContent.toLowerCase());
document.getElementById('search').addEventListener('input', event => {
  const words = event.target.value.toLowerCase().split(/\s+/);
  let shown = 0;
  rows.forEach((row, i) => {
    row.hidden = !words.every(word => texts[i].includes(word));
    shown += !row.hidden;
  });
  document.getElementById('count').textContent = shown + ' of ' + rows.length;
});
const heads = [...table.tHead.rows[0].cells];
heads.forEach((head, column) => head.firstChild.addEventListener('click', () => {
  const down = head.getAttribute('aria-sort') === 'ascending', sign = down ? -1 : 1;
  heads.forEach(other => other.removeAttribute('aria-sort'));
  head.setAttribute('aria-sort', down ? 'descending' : 'ascending');
  const key = row => row.cells[column].dataset.v ?? row.cells[column].textContent;
  const numbers = 'v' in (rows[0]?.cells[column].dataset ?? {});
  const order = (a, b) => numbers ? a - b : a.localeCompare(b, 'en', { numeric: true });
  // What has no value stands last, whichever way.
  const sorted = [...rows].sort((a, b) => {
    const x = key(a), y = key(b);
    return x === '' || y === '' ? (x === '') - (y === '') : sign * order(x, y);
  });
  body.append(...sorted);
}));
