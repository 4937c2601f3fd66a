// A clock that stands still until a test moves it, and knows every timer that is set.

/** Lets everything run that waits for no timer. */
export const settled = () => new Promise((done) => setImmediate(done));

const real = { setTimeout, clearTimeout, now: Date.now };

export class Clock {
  now = Date.UTC(2026, 0, 1);
  #timers = new Map();
  #last = 0;

  /** Takes the place of the process's clock until the test is over. */
  constructor(test) {
    Object.assign(globalThis, {
      setTimeout: (call, delay = 0) => {
        // As in browsers and Node: what does not fit into 31 bits fires at once.
        const due = this.now + (delay > 2 ** 31 - 1 || !(delay >= 0) ? 1 : delay);
        this.#timers.set(++this.#last, { call, due });
        return this.#last;
      },
      clearTimeout: (id) => this.#timers.delete(id),
    });
    Date.now = () => this.now;
    test.after(() => {
      const { now, ...timers } = real;
      Date.now = now;
      Object.assign(globalThis, timers);
    });
  }

  /** How many timers are set. */
  get pending() {
    return this.#timers.size;
  }

  /** Milliseconds until the next timer; undefined without one. */
  get next() {
    const dues = [...this.#timers.values()].map((timer) => timer.due);
    return dues.length ? Math.min(...dues) - this.now : undefined;
  }

  /** Moves on by so many milliseconds, and fires what is due on the way in its order. */
  async pass(milliseconds) {
    const end = this.now + milliseconds;
    await settled();
    for (;;) {
      const due = [...this.#timers].filter(([, timer]) => timer.due <= end).sort(([, a], [, b]) => a.due - b.due)[0];
      if (!due) break;
      this.#timers.delete(due[0]);
      this.now = Math.max(this.now, due[1].due);
      due[1].call();
      await settled();
    }
    this.now = end;
    await settled();
  }
}

/** Random numbers of a seed (mulberry32), so that a failure can be played again. */
export function seeded(seed) {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}
