//! Runs work on several cores and keeps the results in order. It processes rows on a pool of workers, and network namespaces on new
//! threads.
//!
//! The first long list creates the pool, and the pool exists until the process ends. New threads for each list would start late: a
//! scheduler that packs threads onto few cores lets a new thread wait for the core of the thread that created it. If the pool is
//! busy, the caller runs single-threaded, because the cores are busy, too.
//!
//! A worker blocks all signals. It has the network namespace and the credentials of the thread that created the pool,
//! so its work must not depend on them. Once the pool exists, the process cannot enter a user namespace, because that
//! needs a process with one thread.

use std::io::{self, Write};
use std::ops::{ControlFlow, Range};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};
use std::thread;

use nix::sys::signal::SigSet;
use rayon::{Scope, ThreadPool, ThreadPoolBuilder};

/// The number of rows that are formatted as one piece.
const CHUNK: usize = 256;

/// The smallest number of rows for which the pool is faster than one thread.
const WORTHWHILE: usize = 16 * CHUNK;

/// The maximum number of workers. Each needs its own memory, and the kernel's walk over the sockets takes most of the time, so more
/// workers would save little.
const MAX_WORKERS: usize = 3;

/// The pool of workers. `None` if there is no second core, or if no thread can be created.
static POOL: OnceLock<Option<ThreadPool>> = OnceLock::new();

static AT_WORK: Mutex<()> = Mutex::new(());

/// The pool of workers, which one caller at a time can use.
pub struct Workers {
    pool: &'static ThreadPool,
    _at_work: MutexGuard<'static, ()>,
}

impl Workers {
    /// Reserves the pool until the value is dropped; `None` if there is no pool, or if it is busy.
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
            // The kernel delivers a signal to any thread that does not block it. So another thread can block a signal for the process
            // only if every worker blocks it.
            let block = |_| {
                let _ = SigSet::all().thread_block();
            };
            let pool = |workers| ThreadPoolBuilder::new().num_threads(workers).start_handler(block).build().ok();
            (others > 0).then(|| pool(others.min(MAX_WORKERS)).or_else(|| pool(1)))?
        };
        Some(Self { pool: POOL.get_or_init(make).as_ref()?, _at_work: at_work })
    }

    /// The number of workers.
    #[must_use]
    pub fn count(&self) -> usize {
        self.pool.current_num_threads()
    }

    /// Runs `own` on the calling thread. The workers run the jobs that `own` spawns. Returns when all are done.
    pub fn beside<'s, T>(&self, own: impl FnOnce(&Scope<'s>) -> T) -> T {
        self.pool.in_place_scope(own)
    }
}

/// Reserves the pool if it is worthwhile for this number of rows.
fn workers(rows: usize) -> Option<Workers> {
    (rows >= WORTHWHILE).then(Workers::take)?
}

/// A function that receives the pieces of a result. If it returns [`ControlFlow::Break`], it needs no more pieces.
pub type PassOn<'a, P> = dyn FnMut(P) -> ControlFlow<()> + Send + 'a;

type Job<'s> = Box<dyn FnOnce() + Send + 's>;

/// The maximum number of pieces that wait in the channel of a thread.
const AHEAD: usize = 2;

/// Runs `work` on the items `0..items`, on the calling thread and on at most `others` more threads, and passes the pieces to `each`
/// in the order of the items. Memory is bounded, because each thread is at most a few pieces ahead.
///
/// 1. Thread `i` of `n` takes the items `i`, `i + n`, `i + 2n`, ...; the calling thread is thread 0.
/// 2. Every other thread has its own channel. It sends its pieces, and `None` after the last piece of an item.
/// 3. The calling thread goes through all items in order. It computes its own items, and receives the pieces of the other
///    items.
/// 4. When `each` breaks, the channels are dropped, and the other threads stop at their next piece.
///
/// `spawn` starts a job, or returns false if it cannot. Then the calling thread does the work of that job.
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
                // After a break, do not receive the next piece: producing it may take long, and it is not needed.
                while flow.is_continue()
                    && let Ok(Some(piece)) = receiver.recv()
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

/// Runs `work` on the items, on the calling thread and on new threads, and passes the pieces to `each` in the order of the items.
/// `threads` is the maximum number of threads, with the calling thread. A new thread is in the network namespace of the calling
/// thread.
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

/// Formats rows `0..rows` in parallel and writes them to `out` in order. `bytes_of` formats a range of rows. It may reuse
/// the memory of the buffer that it gets, and must remove the old content of this buffer.
pub fn write(
    out: &mut (dyn Write + Send),
    rows: usize,
    bytes_of: &(impl Fn(Range<usize>, Vec<u8>) -> Vec<u8> + Sync),
) -> io::Result<()> {
    write_on(workers(rows).as_ref(), out, rows, bytes_of)
}

fn write_on(
    workers: Option<&Workers>,
    out: &mut (dyn Write + Send),
    rows: usize,
    bytes_of: &(impl Fn(Range<usize>, Vec<u8>) -> Vec<u8> + Sync),
) -> io::Result<()> {
    // Written buffers, which the next pieces reuse. With new memory for each piece, a table or JSON document of 100,000 rows
    // takes 1.1 times as long (median of 21 pairs, Linux 6.18, 2026-11-28), because the kernel maps new pages each time.
    let used: Mutex<Vec<Vec<u8>>> = Mutex::default();
    let lock = || used.lock().unwrap_or_else(PoisonError::into_inner);
    let work = |chunk: usize, pass_on: &mut PassOn<Vec<u8>>| {
        let buffer = lock().pop().unwrap_or_default();
        let _ = pass_on(bytes_of(chunk * CHUNK..rows.min((chunk + 1) * CHUNK), buffer));
    };
    let mut written = Ok(());
    let mut each = |bytes: Vec<u8>| {
        written = out.write_all(&bytes);
        lock().push(bytes);
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

/// Computes a value for rows `0..rows` in parallel: `part` computes the value of a range, and `join` merges two values
/// in the order of the rows.
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

/// Sorts in parallel. It is fast if parts of the slice are already in order.
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
    // The standard library's stable sort detects sorted parts and merges them.
    values.sort();
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A number of rows with many chunks for every worker, and with an incomplete last chunk.
    const ROWS: usize = 100 * CHUNK + 1;

    fn numbers(range: Range<usize>, mut bytes: Vec<u8>) -> Vec<u8> {
        bytes.clear();
        bytes.extend(range.flat_map(|number| format!("{number}\n").into_bytes()));
        bytes
    }

    /// Waits until no other test uses the pool; `None` on one core.
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
    fn each_core_but_the_first_has_a_worker_up_to_the_maximum() {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        assert_eq!(free_workers().map_or(0, |workers| workers.count()), (cores - 1).min(MAX_WORKERS));
    }

    #[test]
    fn bytes_are_written_in_the_order_of_the_rows() {
        for rows in [0, 1, CHUNK, WORTHWHILE - 1, WORTHWHILE, ROWS] {
            for workers in [None, free_workers()] {
                let mut out = vec![];
                write_on(workers.as_ref(), &mut out, rows, &numbers).expect("written");
                assert!(out == numbers(0..rows, vec![]), "{rows} rows");
            }
        }
    }

    #[test]
    fn pieces_arrive_in_the_order_of_the_items_until_the_receiver_breaks() {
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
    fn if_a_thread_cannot_be_started_the_caller_does_the_work_of_that_thread() {
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
    fn a_failed_write_ends_the_work_and_frees_the_workers() {
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
