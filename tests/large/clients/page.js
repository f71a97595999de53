// Opens the page in a real browser, in two widths, light and dark, and prints what it shows as JSON: `page.js URL [SEARCH]`.
const puppeteer = require("puppeteer-core");
const axe = require("axe-core").source;

(async () => {
  const [, , url, search] = process.argv;
  const browser = await puppeteer.launch({ executablePath: "/usr/bin/chromium", args: ["--no-sandbox", "--disable-gpu"] });
  for (const [width, scheme] of [[1280, "light"], [390, "dark"]]) {
    const page = await browser.newPage();
    const errors = [], elsewhere = [];
    page.on("pageerror", (error) => errors.push(error.message));
    page.on("console", (message) => { if (message.type() === "error") errors.push(message.text()); });
    page.on("request", (request) => {
      if (!request.url().startsWith(url) && !request.url().startsWith("data:")) elsewhere.push(request.url());
    });
    // A day of history takes a day: its plots are drawn of what a relay of that age would give.
    await page.setRequestInterception(true);
    page.on("request", async (request) => {
      if (!search || !request.url().endsWith("/api/history")) return request.continue();
      const known = await (await fetch(request.url())).json();
      for (const span of ["hour", "day"]) {
        for (const name of Object.keys(known[span].series)) known[span].series[name] = Array.from({ length: 360 }, (_, n) => n % 50);
      }
      request.respond({ contentType: "application/json", body: JSON.stringify(known) });
    });
    await page.setBypassCSP(true);
    await page.setViewport({ width, height: 900 });
    await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: scheme }]);
    await page.goto(url, { waitUntil: "load" });
    await page.waitForFunction(() => document.querySelectorAll("#ledger tbody tr").length > 0 && plots && allSources, { timeout: 20000 });
    if (search) await page.type("#search", search);
    await page.click("#day");
    await page.waitForFunction(() => document.querySelector("svg[role=img]").getAttribute("aria-label").includes("last day"), { timeout: 5000 });
    await page.evaluate(axe);
    const shown = await page.evaluate(async () => {
      const text = (query) => [...document.querySelectorAll(query)].map((node) => node.textContent.trim());
      const rows = (id) => [...document.querySelectorAll(`#${id} tbody tr`)].map((row) => [...row.children].map((cell) => cell.textContent));
      const checked = await window.axe.run(document, { runOnly: ["wcag2a", "wcag2aa", "best-practice"] });
      const paint = performance.getEntriesByName("first-contentful-paint")[0];
      return {
        headline: text("h1")[0], findings: text("#findings li"), commands: text("#findings code"), backends: text("#backends article"),
        ledger: rows("ledger"), listeners: rows("listeners"), gaps: rows("gaps"), owed: rows("owed"), peer: text("#peer article"), sources: rows("sources"),
        journal: text("#journal dd"), plots: document.querySelectorAll("svg[role=img][aria-label]").length,
        points: Math.max(...[...document.querySelectorAll("svg path")].map((path) => path.getAttribute("d").split(/[ML]/).length - 1)),
        overflow: document.documentElement.scrollWidth - window.innerWidth,
        untitled: [...document.querySelectorAll("dt, #ledger thead th, #listeners thead th")].filter((node) => !node.title).length,
        violations: checked.violations.map((one) => `${one.id}: ${one.nodes.map((node) => node.html).slice(0, 3).join(" ")}`),
        paint: paint ? paint.startTime : null,
      };
    });
    console.log(JSON.stringify({ call: `${width} ${scheme}`, ...shown, errors, elsewhere }));
    if (process.env.TWINFLUX_SCREENSHOTS) {
      const name = new URL(url).port;
      await page.screenshot({ path: `${process.env.TWINFLUX_SCREENSHOTS}/${name}-${width}-${scheme}.png`, fullPage: true });
    }
    await page.close();
  }
  await browser.close();
})().catch((error) => { console.error(error); process.exit(1); });
