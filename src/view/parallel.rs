//! Text of many rows, made on every core and written in order.

use std::io::{self, Write};
use std::ops::Range;
use std::sync::mpsc;
use std::thread;

/// Rows that are formatted at once.
const CHUNK: usize = 512;

/// Fewer rows than this are not worth a thread.
const WORTHWHILE: usize = 4 * CHUNK;

fn workers(rows: usize) -> usize {
    if rows < WORTHWHILE { 1 } else { thread::available_parallelism().map_or(1, usize::from) }
}

/// Appends the text of rows `0..rows` to `out`, in order; `append` makes the text of some of them. Memory is bounded.
pub(super) fn write(
    out: &mut dyn Write,
    rows: usize,
    append: &(impl Fn(Range<usize>, &mut String) + Sync),
) -> io::Result<()> {
    let workers = workers(rows);
    let chunks = rows.div_ceil(CHUNK);
    let range = |chunk: usize| chunk * CHUNK..rows.min((chunk + 1) * CHUNK);
    if workers == 1 {
        let mut text = String::new();
        for chunk in 0..chunks {
            text.clear();
            append(range(chunk), &mut text);
            out.write_all(text.as_bytes())?;
        }
        return Ok(());
    }
    thread::scope(|scope| {
        // Each worker makes every n-th chunk; taking them in turn gives them back in order. A chunk whose worker could not
        // be started is made here.
        let made: Vec<Option<mpsc::Receiver<String>>> = (0..workers)
            .map(|worker| {
                let (sender, receiver) = mpsc::sync_channel(2);
                let make = move || {
                    for chunk in (worker..chunks).step_by(workers) {
                        let mut text = String::with_capacity(CHUNK * 192);
                        append(range(chunk), &mut text);
                        // The writer hangs up when it cannot write.
                        if sender.send(text).is_err() {
                            return;
                        }
                    }
                };
                thread::Builder::new().spawn_scoped(scope, make).is_ok().then_some(receiver)
            })
            .collect();
        for chunk in 0..chunks {
            let received = made[chunk % workers].as_ref().map(mpsc::Receiver::recv);
            let text = if let Some(text) = received {
                text.map_err(|_| io::Error::other("a formatting thread ended early"))?
            } else {
                let mut text = String::new();
                append(range(chunk), &mut text);
                text
            };
            out.write_all(text.as_bytes())?;
        }
        Ok(())
    })
}

/// Folds rows `0..rows` on every core, each part from a fresh value, and joins the parts.
pub(super) fn fold<T: Send>(rows: usize, part: &(impl Fn(Range<usize>) -> T + Sync), join: impl FnMut(T, T) -> T) -> T {
    let workers = workers(rows);
    let size = rows.div_ceil(workers);
    let rows_of = |worker: usize| size * worker..rows.min(size * (worker + 1));
    let mut parts = thread::scope(|scope| {
        let others: Vec<_> = (1..workers)
            .map(|worker| (worker, thread::Builder::new().spawn_scoped(scope, move || part(rows_of(worker)))))
            .collect();
        let mut parts = vec![part(rows_of(0))];
        for (worker, other) in others {
            parts.push(match other {
                Ok(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
                Err(_) => part(rows_of(worker)),
            });
        }
        parts
    });
    let first = parts.remove(0);
    parts.into_iter().fold(first, join)
}
