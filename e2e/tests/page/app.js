// Says in the page what every sub-resource came to.
addEventListener('load', async () => {
  const message = document.getElementById('message');
  const picture = document.getElementById('picture');
  const colour = getComputedStyle(message).color;
  const data = await (await fetch('/data.json')).json();
  const protocol = performance.getEntriesByType('navigation')[0].nextHopProtocol;
  message.textContent = `${data.message}; ${colour}; ${picture.naturalWidth}x${picture.naturalHeight}; ${protocol}`;
});
