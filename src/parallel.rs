//! Work on several cores, with results in order: rows on workers, which are threads that stay, and namespaces on new threads.
//!
//! Workers are made for the first long list and stay, because a new thread costs more than its making: a scheduler that packs
//! threads onto few cores leaves it waiting for the core of its maker. If the workers are busy for another caller, the caller
//! runs single-threaded: the cores are busy then.
//!
//! A worker blocks all signals, and has the network namespace and the credentials of the thread that asked first, so its work
//! must depend on none of these. Once workers exist, the process cannot enter a user namespace, because that needs a process of
//! one thread.

use std::io::{self, Write};
use std::ops::{ControlFlow, Range};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Mutex, MutexGuard, OnceLock, TryLockError};
use std::thread;

use nix::sys::signal::SigSet;
use rayon::{Scope, ThreadPool, ThreadPoolBuilder};

/// Rows that are formatted in one piece.
const CHUNK: usize = 256;

/// Fewer rows than this are not worth another thread.
const WORTHWHILE: usize = 16 * CHUNK;

/// The most workers: each has memory of its own, and what is left to do after the kernel's walk is short.
const MOST: usize = 3;

/// `None` where there is no second core, or no thread can be made.
static POOL: OnceLock<Option<ThreadPool>> = OnceLock::new();

static AT_WORK: Mutex<()> = Mutex::new(());

/// The workers, for one caller at a time.
pub struct Workers {
    pool: &'static ThreadPool,
    _at_work: MutexGuard<'static, ()>,
}

impl Workers {
    /// Takes the workers; `None` if there are none, or if they are busy.
    #[must_use]
    pub fn take() -> Option<Self> {
        let at_work = match AT_WORK.try_lock() {
            Ok(at_work) => at_work,
            // The lock guards no data that a panic could have left half changed.
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        let make = || {
            let others = thread::available_parallelism().ok()?.get() - 1;
            // A signal goes to a thread that waits for it: one that holds signals back must not be passed over.
            let block = |_| {
                let _ = SigSet::all().thread_block();
            };
            let pool = |workers| ThreadPoolBuilder::new().num_threads(workers).start_handler(block).build().ok();
            (others > 0).then(|| pool(others.min(MOST)).or_else(|| pool(1)))?
        };
        Some(Self { pool: POOL.get_or_init(make).as_ref()?, _at_work: at_work })
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.pool.current_num_threads()
    }

    /// Runs `own` here, and what it spawns in the scope on the workers. Returns when all of it is done.
    pub fn beside<'s, T>(&self, own: impl FnOnce(&Scope<'s>) -> T) -> T {
        self.pool.in_place_scope(own)
    }
}

/// The workers, if this number of rows is worth them.
fn workers(rows: usize) -> Option<Workers> {
    (rows >= WORTHWHILE).then(Workers::take)?
}

/// Passes a piece of work on; after a [`ControlFlow::Break`] no more is wanted.
pub type PassOn<'a, P> = dyn FnMut(P) -> ControlFlow<()> + Send + 'a;

/// A job for another thread.
type Job<'s> = Box<dyn FnOnce() + Send + 's>;

/// Pieces that a thread may be ahead of the one that takes them.
const AHEAD: usize = 2;

/// Works on the items `0..items` on `others` further threads and the calling one, and passes their pieces to `each` in the order
/// of the items. Memory is bounded, because a thread is at most a few pieces ahead.
///
/// 1. Thread `i` of `n` takes the items `i`, `i + n`, `i + 2n`, ...; the calling thread is thread 0.
/// 2. Another thread sends its pieces, and `None` behind the last piece of an item, through a channel of its own.
/// 3. The calling thread goes through the items in order. It works on its own, and receives the pieces of the others.
/// 4. When `each` wants no more, the channels are dropped, and the other threads stop at their next piece.
///
/// `spawn` starts a job, or returns false where it cannot; then the calling thread takes that share, too.
fn in_order<'s, P: Send + 's>(
    items: usize,
    others: usize,
    spawn: &mut dyn FnMut(Job<'s>) -> bool,
    work: &'s (dyn Fn(usize, &mut PassOn<P>) + Sync),
    each: &mut PassOn<P>,
) {
    let threads = items.min(others + 1).max(1);
    let receivers: Vec<Option<Receiver<Option<P>>>> = (1..threads)
        .map(|thread| {
            let (sender, receiver) = mpsc::sync_channel(AHEAD);
            let send = move |piece| match sender.send(piece) {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            };
            let job = move || {
                for item in (thread..items).step_by(threads) {
                    work(item, &mut |piece| send(Some(piece)));
                    if send(None).is_break() {
                        return;
                    }
                }
            };
            spawn(Box::new(job)).then_some(receiver)
        })
        .collect();
    for item in 0..items {
        let mut flow = ControlFlow::Continue(());
        match (item % threads).checked_sub(1).and_then(|thread| receivers[thread].as_ref()) {
            None => work(item, &mut |piece| {
                flow = each(piece);
                flow
            }),
            Some(receiver) => {
                while let Ok(Some(piece)) = receiver.recv()
                    && flow.is_continue()
                {
                    flow = each(piece);
                }
            }
        }
        if flow.is_break() {
            return;
        }
    }
}

/// Works on the items in order, on the calling thread and on new ones, together at most `threads`. A new thread is in the
/// network namespace of the calling one.
pub fn in_order_on_new_threads<T: Sync, P: Send>(
    items: &[T],
    threads: usize,
    work: &(impl Fn(&T, &mut PassOn<P>) + Sync),
    each: &mut PassOn<P>,
) {
    let work = |item: usize, pass_on: &mut PassOn<P>| work(&items[item], pass_on);
    thread::scope(|scope| {
        let spawn = &mut |job| thread::Builder::new().spawn_scoped(scope, job).is_ok();
        in_order(items.len(), threads.saturating_sub(1), spawn, &work, each);
    });
}

/// Writes the bytes of rows `0..rows` to `out`, in order; `bytes_of` makes those of some of them. Memory is bounded.
pub fn write(
    out: &mut (dyn Write + Send),
    rows: usize,
    bytes_of: &(impl Fn(Range<usize>) -> Vec<u8> + Sync),
) -> io::Result<()> {
    write_on(workers(rows).as_ref(), out, rows, bytes_of)
}

fn write_on(
    workers: Option<&Workers>,
    out: &mut (dyn Write + Send),
    rows: usize,
    bytes_of: &(impl Fn(Range<usize>) -> Vec<u8> + Sync),
) -> io::Result<()> {
    let work = |chunk: usize, pass_on: &mut PassOn<Vec<u8>>| {
        let _ = pass_on(bytes_of(chunk * CHUNK..rows.min((chunk + 1) * CHUNK)));
    };
    let mut written = Ok(());
    let mut each = |bytes: Vec<u8>| {
        written = out.write_all(&bytes);
        if written.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    };
    let chunks = rows.div_ceil(CHUNK);
    match workers {
        None => in_order(chunks, 0, &mut |_| false, &work, &mut each),
        Some(workers) => workers.beside(|scope| {
            let spawn = &mut |job: _| {
                let job: Job = job;
                scope.spawn(|_| job());
                true
            };
            in_order(chunks, workers.count(), spawn, &work, &mut each);
        }),
    }
    written
}

/// Folds rows `0..rows` on every core, each part from a fresh value, and joins the parts in their order.
pub fn fold<T: Send>(rows: usize, part: &(impl Fn(Range<usize>) -> T + Sync), join: impl FnMut(T, T) -> T) -> T {
    let Some(workers) = workers(rows) else { return part(0..rows) };
    let threads = workers.count() + 1;
    let size = rows.div_ceil(threads);
    let rows_of = |worker: usize| (size * worker).min(rows)..rows.min(size * (worker + 1));
    let mut others: Vec<Option<T>> = (1..threads).map(|_| None).collect();
    let first = workers.beside(|scope| {
        for (worker, other) in (1..).zip(&mut others) {
            scope.spawn(move |_| *other = Some(part(rows_of(worker))));
        }
        part(rows_of(0))
    });
    others.into_iter().flatten().fold(first, join)
}

/// Sorts, and fast where parts are in order already.
pub fn sort<T: Ord + Send>(values: &mut [T]) {
    if let Some(workers) = workers(values.len()) {
        let size = values.len().div_ceil(workers.count() + 1);
        let (own, others) = values.split_at_mut(size);
        workers.beside(|scope| {
            for other in others.chunks_mut(size) {
                scope.spawn(|_| other.sort());
            }
            own.sort();
        });
    }
    // A stable sort finds the parts that are in order, and merges them.
    values.sort();
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Enough for every worker to have many chunks, and the last one not full.
    const ROWS: usize = 100 * CHUNK + 1;

    fn numbers(range: Range<usize>) -> Vec<u8> {
        range.flat_map(|number| format!("{number}\n").into_bytes()).collect()
    }

    /// The workers, once no other test has them; `None` on one core.
    fn free_workers() -> Option<Workers> {
        if thread::available_parallelism().map_or(1, usize::from) == 1 {
            return None;
        }
        loop {
            if let Some(workers) = Workers::take() {
                return Some(workers);
            }
            thread::yield_now();
        }
    }

    #[test]
    fn there_is_a_worker_for_each_further_core() {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        assert_eq!(free_workers().map_or(0, |workers| workers.count()), (cores - 1).min(MOST));
    }

    #[test]
    fn bytes_are_written_in_the_order_of_the_rows() {
        for rows in [0, 1, CHUNK, WORTHWHILE - 1, WORTHWHILE, ROWS] {
            for workers in [None, free_workers()] {
                let mut out = vec![];
                write_on(workers.as_ref(), &mut out, rows, &numbers).expect("written");
                assert!(out == numbers(0..rows), "{rows} rows");
            }
        }
    }

    #[test]
    fn pieces_come_in_the_order_of_the_items_until_no_more_is_wanted() {
        let items: Vec<u32> = (0..20).collect();
        let pieces_of = |item: &u32| (0..item % 4).map(move |piece| (*item, piece)).collect::<Vec<_>>();
        let all: Vec<_> = items.iter().flat_map(pieces_of).collect();
        let work = |item: &u32, pass_on: &mut PassOn<(u32, u32)>| {
            let _ = pieces_of(item).into_iter().try_for_each(pass_on);
        };
        for threads in [0, 1, 2, 3, 50] {
            for wanted in [1, 7, all.len()] {
                let mut came = vec![];
                in_order_on_new_threads(&items, threads, &work, &mut |piece| {
                    came.push(piece);
                    if came.len() < wanted { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
                });
                assert_eq!(came, all[..wanted], "{threads} threads");
            }
        }
    }

    #[test]
    fn a_share_whose_thread_cannot_be_started_is_done_here() {
        let mut came = vec![];
        let work = |item: usize, pass_on: &mut PassOn<usize>| {
            let _ = pass_on(item);
        };
        in_order(9, 3, &mut |_| false, &work, &mut |item| {
            came.push(item);
            ControlFlow::Continue(())
        });
        assert!(came.into_iter().eq(0..9));
    }

    #[test]
    fn a_writer_that_fails_ends_it_and_the_workers_are_free_again() {
        struct Full(usize);

        impl Write for Full {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0 = self.0.checked_sub(bytes.len()).ok_or(io::ErrorKind::StorageFull)?;
                Ok(bytes.len())
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }

        for room in [0, 10_000, 50_000] {
            let workers = free_workers();
            let error = write_on(workers.as_ref(), &mut Full(room), ROWS, &numbers).expect_err("no room");
            drop(workers);
            assert_eq!(error.kind(), io::ErrorKind::StorageFull);
            assert_eq!(fold(ROWS, &|range| range.count(), |a, b| a + b), ROWS);
        }
    }

    #[test]
    fn parts_are_joined_in_the_order_of_the_rows() {
        for rows in [0, 1, WORTHWHILE, ROWS] {
            let all = fold(rows, &|range| range.collect::<Vec<_>>(), |a, b| [a, b].concat());
            assert!(all.iter().copied().eq(0..rows), "{rows} rows");
        }
    }
}
