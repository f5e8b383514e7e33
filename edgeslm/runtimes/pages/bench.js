// The task `bench`: load, warm up until stable, then timed rounds; every phase of a round is timed apart. One round
// visits every length of `prefill` and `depths`: the cache is emptied, that many ids are fed, the first id is picked,
// and where the length is a depth `new_tokens` are decoded after it one by one. Between phases the page asks the
// server what its processes used; nothing is asked while a phase runs.
//
// An engine offers: info, load_s, vocabulary, kv_cache_bytes and
//   answer(ids, steps, {between, onId}) -> {first_s, seconds, token_latency_s, ids}: on an empty cache feed `ids`,
//   pick the best id, then `steps` more; `between` is awaited after the first pick, `onId` may return false to stop.

const SHORTEST_LOOK_S = 0.2; // the kernel counts busy time in steps of 10 ms
const MEMORY_PATIENCE_MS = 5000;
const WATCH_MS = 100;

// Smallest step of the clock that this page is given, in seconds.
export function clockResolution() {
  let smallest = Infinity;
  for (let seen = 0, last = performance.now(); seen < 200; ) {
    const now = performance.now();
    if (now > last) {
      smallest = Math.min(smallest, now - last);
      seen++;
      last = now;
    }
  }
  return smallest / 1000;
}

// Bytes of this page, its workers and their WebAssembly, as the browser counts them; null where it does not tell.
export async function pageBytes(patience_ms = MEMORY_PATIENCE_MS) {
  if (!crossOriginIsolated || !performance.measureUserAgentSpecificMemory) return null;
  const late = new Promise((resolve) => setTimeout(resolve, patience_ms, null));
  const found = await Promise.race([performance.measureUserAgentSpecificMemory().catch(() => null), late]);
  return found && found.bytes;
}

// The page's own figure, and what the kernel says of all the browser's processes.
async function memory(desk) {
  const page_bytes = await pageBytes(), processes = await desk.memory();
  return page_bytes === null ? processes : {page_bytes, ...processes};
}

// Samples the processes' memory while `work` runs; for warm-ups only, never beside a timed run.
async function watched(desk, samples, work) {
  let over = false;
  const watch = (async () => {
    while (!over) {
      samples.push(await desk.memory());
      await new Promise((resolve) => setTimeout(resolve, WATCH_MS));
    }
  })();
  try {
    return await work();
  } finally {
    over = true;
    await watch;
    samples.push(await memory(desk));
  }
}

// What a phase used, from two looks around it.
function used(seconds, before, after) {
  if (before.cpu_s === null || after.cpu_s === null)
    throw new Error("this system does not tell what a browser's processes use (it has no /proc); measure on Linux");
  const cpu_s = Math.max(0, after.cpu_s - before.cpu_s);
  const known = before.busy_s !== null && after.busy_s !== null && seconds >= SHORTEST_LOOK_S;
  const pair = (kind) => [before.sensors[kind] ?? [], after.sensors[kind] ?? []];
  return {
    seconds,
    cpu_s,
    others_cores: known ? Math.max(0, (after.busy_s - before.busy_s - cpu_s) / seconds) : null,
    watch: {khz: pair("khz"), millicelsius: pair("millicelsius")},
    rails: pair("rails"),
  };
}

async function oneRound(engine, job, desk) {
  const prefill = new Set(job.prefill), depths = new Set(job.depths), runs = new Map();
  for (const length of [...new Set([...prefill, ...depths])].sort((a, b) => a - b)) {
    const deep = depths.has(length);
    const steps = deep ? job.new_tokens - (length ? 0 : 1) : 0; // at depth 0 the first id fed is the first step
    const before = await desk.look();
    let middle = null;
    const found = await engine.answer(length ? job.prompt.slice(0, length) : job.prompt.slice(0, 1), steps, {
      between: async () => { middle = await desk.look(); },
    });
    const after = await desk.look();
    if (prefill.has(length)) {
      const run = {...used(found.first_s, before, middle), first_s: found.first_s};
      runs.set(`prefill ${length} 0`, run);
    }
    if (deep && length) {
      runs.set(`decode ${job.new_tokens} ${length}`,
        {...used(found.seconds, middle, after), token_latency_s: found.token_latency_s});
    } else if (deep) {
      const latencies = [found.first_s, ...found.token_latency_s];
      runs.set(`decode ${job.new_tokens} 0`,
        {...used(found.first_s + found.seconds, before, after), token_latency_s: latencies});
    }
  }
  return runs;
}

function steady(rounds, wanted) {
  if (rounds.length < 2) return false;
  const [last, previous] = [rounds.at(-1), rounds.at(-2)];
  return [...last].every(([phase, run]) => {
    const a = previous.get(phase).seconds, b = run.seconds;
    return Math.abs(a - b) <= wanted.within * Math.max(a, b);
  });
}

async function sustained(engine, job, desk) {
  const length = job.depths.length ? Math.min(...job.depths) : Math.min(...job.prefill);
  const began = performance.now(), found = [];
  for (let at = 0; at < job.sustained_s; at = (performance.now() - began) / 1000) {
    const before = await desk.look();
    const one = await engine.answer(job.prompt.slice(0, Math.max(1, length)), job.new_tokens, {});
    const {watch} = used(one.seconds, before, await desk.look());
    found.push({at_s: at, seconds: one.seconds, tokens: job.new_tokens, watch});
  }
  return found;
}

export function checkPrompt(job, vocabulary) {
  const lengths = [...job.prefill, ...job.depths], whole = job.prompt.length;
  const bad = job.prompt.some((id) => !Number.isInteger(id) || id < 0 || id >= vocabulary);
  if (!whole || bad || job.new_tokens < 1)
    throw new Error(`the prompt must hold ids below ${vocabulary} and new_tokens must be at least 1`);
  if (!lengths.length || Math.min(...lengths) < 0 || Math.max(...lengths) > whole || job.prefill.includes(0))
    throw new Error(`lengths must be between 1 (depths: 0) and ${whole}, the length of the prompt`);
  if (Math.max(...lengths) + job.new_tokens > job.context)
    throw new Error(`${Math.max(...lengths) + job.new_tokens} ids do not fit the context of ${job.context}`);
}

const wallMinusMonotonic = () => (Date.now() - performance.now()) / 1000;

export async function bench(open, given, desk) {
  const job = {depths: [], ...given};
  const clock = wallMinusMonotonic(), before_load = await memory(desk);
  const engine = await open();
  checkPrompt(job, engine.vocabulary);
  const samples = [await memory(desk)], warm = [], rounds = [], {least, most} = job.warmups;
  const total = most + job.repeats;
  while (warm.length < most) {
    warm.push(await watched(desk, samples, () => oneRound(engine, job, desk)));
    await desk.progress(warm.length, total);
    if (warm.length >= least && (least >= most || steady(warm, job.warmups))) break;
  }
  for (let done = 0; done < job.repeats; done++) {
    rounds.push(await oneRound(engine, job, desk));
    samples.push(await memory(desk));
    await desk.progress(most + done + 1, total);
  }
  const phases = [...rounds[0].keys()].map((phase) => {
    const [kind, tokens, depth] = phase.split(" ");
    const of = (all) => all.map((round) => round.get(phase));
    return {kind, tokens: Number(tokens), depth: Number(depth), warmups: of(warm), runs: of(rounds)};
  });
  return {
    engine: {...engine.info, browser: browserVersion(), clock_resolution_s: clockResolution()},
    load_s: engine.load_s,
    phases,
    sustained: job.sustained_s ? await sustained(engine, job, desk) : [],
    stable: steady(warm, job.warmups),
    kv_cache_bytes: engine.kv_cache_bytes ?? null,
    memory: {before_load, samples},
    steps: {wall_minus_monotonic_s: [clock, wallMinusMonotonic()]},
  };
}

export function browserVersion() {
  const brand = navigator.userAgentData?.brands.find((one) => one.brand !== "Chromium" && !/not/i.test(one.brand))
    ?? navigator.userAgentData?.brands.find((one) => one.brand === "Chromium");
  return brand ? `${brand.brand} ${brand.version}` : navigator.userAgent;
}
