// What is wrong with a page as a browser shows it. Code, tables and formulas may scroll inside
// themselves on a phone; on a screen code must not, and nothing may be wider than the page.
(screen) => {
  const width = document.documentElement.clientWidth, faults = [];
  const show = (text) => text.trim().replace(/\s+/g, ' ').slice(0, 60);
  const isShown = (element) => element.getClientRects().length > 0;
  const overflow = (element) => getComputedStyle(element).overflowX;

  for (const details of document.querySelectorAll('details')) details.open = true;

  function scrolls(element) {
    for (let e = element; e && e !== document.body; e = e.parentElement)
      if (['auto', 'scroll'].includes(overflow(e))) return true;
    return false;
  }

  if (document.documentElement.scrollWidth > width + 1)
    faults.push(`the page is ${document.documentElement.scrollWidth} wide`);
  for (const element of document.querySelectorAll('article *, .md-header *, .md-footer *')) {
    const { left, right } = element.getBoundingClientRect();
    const out = isShown(element) && right - left > 1 && (right > width + 1 || left < -1);
    if (out && !scrolls(element) && !element.closest('.md-search, label, .md-version'))
      faults.push(`${element.tagName} leaves the page: ${show(element.textContent)}`);
    // What is hidden on purpose is one pixel wide.
    const cut = element.clientWidth > 1 && element.scrollWidth > element.clientWidth + 1;
    const clips = element.closest('article') && ['hidden', 'clip'].includes(overflow(element));
    if (cut && clips && isShown(element))
      faults.push(`${element.tagName} is cut: ${show(element.textContent)}`);
  }

  for (const code of document.querySelectorAll('article pre > code'))
    if (screen && code.scrollWidth > code.clientWidth + 1)
      faults.push('code is cut: ' + show(code.textContent));
  for (const button of document.querySelectorAll('article :is(.md-code__nav, .md-clipboard)')) {
    const code = button.closest('pre, .highlight')?.querySelector('code');
    const b = button.getBoundingClientRect();
    if (!code || !b.width) continue;
    const range = document.createRange();
    range.selectNodeContents(code);
    if ([...range.getClientRects()].some((r) => r.right > b.left + 1 && r.left < b.right &&
        r.bottom > b.top + 1 && r.top < b.bottom - 1))
      faults.push('code lies under its button: ' + show(code.textContent));
  }

  // A name may be broken after a dot, an underscore, or where its words meet: Predictor|Corrector.
  const names = 'article :is(h1, h2, h3, h4, p, li, td, th) code, .md-nav__link, h1, h2, h3, h4';
  for (const element of document.querySelectorAll(names)) {
    if (!isShown(element) || element.getClientRects().length + element.offsetHeight < 24) continue;
    const walker = document.createTreeWalker(element, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
      for (const word of walker.currentNode.data.matchAll(/[A-Z]*[a-z0-9]+|[A-Z]+/g)) {
        const range = document.createRange();
        range.setStart(walker.currentNode, word.index);
        range.setEnd(walker.currentNode, word.index + word[0].length);
        if (new Set([...range.getClientRects()].map((r) => Math.round(r.top))).size > 1)
          faults.push(`"${word[0]}" is broken: ${show(element.textContent)}`);
      }
    }
  }

  const text = document.documentElement.cloneNode(true);
  for (const node of text.querySelectorAll('code, pre, script, style, annotation')) node.remove();
  for (const match of text.textContent.matchAll(/\\[a-zA-Z]{2,}|\\\(|\\\[|\$[^$\n]{1,40}\$/g))
    faults.push('raw TeX: ' + match[0]);
  for (const link of document.querySelectorAll('a[href^="#"]')) {
    const id = decodeURIComponent(link.getAttribute('href').slice(1));
    if (id && !document.getElementById(id)) faults.push('no such place: #' + id);
  }
  for (const image of document.images) {
    if (image.complete && !image.naturalWidth) faults.push('no picture: ' + image.src);
    // Beside the words of its link a picture needs none.
    if (image.closest('article') && !image.alt && !image.closest('a'))
      faults.push('a picture without words: ' + image.src);
  }
  const drawn = (theme) => document.querySelectorAll(`article img[src$="#only-${theme}"]`).length;
  if (drawn('light') !== drawn('dark')) faults.push('a figure without its twin');
  for (const list of document.querySelectorAll('.md-nav--secondary ul'))
    if ([...list.children].filter(isShown).length > 50)
      faults.push('contents of more than 50 entries');
  return [...new Set(faults)];
}
