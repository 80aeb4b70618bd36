//! Code that the tests share. It runs the binary, makes sockets on the kernel, and lists the kernel's sockets without twtool's own code.
//!
//! A test is a plain function whose name is a sentence. A file lists its tests once, with [`suite!`]. If a test is missing there,
//! the compiler reports it as dead code.

pub(crate) mod addresses;
pub(crate) mod answers;
pub(crate) mod bind;
pub(crate) mod bucket_namespaces;
pub(crate) mod cgroup;
pub(crate) mod commands;
pub(crate) mod connects;
pub(crate) mod crowd;
pub(crate) mod datagrams;
pub(crate) mod dialogue;
pub(crate) mod experiment;
pub(crate) mod exporter;
pub(crate) mod kernel;
pub(crate) mod limits;
pub(crate) mod netns;
pub(crate) mod opener;
pub(crate) mod outbound;
pub(crate) mod private_proc;
pub(crate) mod procfs;
pub(crate) mod random;
pub(crate) mod records;
pub(crate) mod screen;
pub(crate) mod services;
pub(crate) mod settings;
pub(crate) mod situations;
pub(crate) mod tracer;
pub(crate) mod twtool;
pub(crate) mod varied;
pub(crate) mod waiter;
pub(crate) mod watcher;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Mutex;

use libtest_mimic::{Completion, Failed, Trial};

pub(crate) struct Suite {
    pub(crate) module: &'static str,
    /// Tests that run anywhere.
    pub(crate) pure: Vec<(&'static str, fn())>,
    /// Tests that need a network namespace of their own.
    pub(crate) netns: Vec<(&'static str, fn())>,
}

/// `suite! { pure: [a, b], netns: [c] }` defines the function `suite()` of a file.
macro_rules! suite {
    (pure: [$($pure:ident),* $(,)?], netns: [$($netns:ident),* $(,)?] $(,)?) => {
        pub(crate) fn suite() -> crate::support::Suite {
            crate::support::Suite {
                module: module_path!(),
                pure: vec![$((stringify!($pure), $pure as fn())),*],
                netns: vec![$((stringify!($netns), $netns as fn())),*],
            }
        }
    };
}
pub(crate) use suite;

impl Suite {
    /// The tests as the harness runs them, with names like `demo::steps_need_a_terminal`. `namespaces` is an error if the process
    /// cannot make network namespaces.
    pub(crate) fn trials(&self, namespaces: &Result<(), String>) -> Vec<Trial> {
        let file = self.module.rsplit("::").next().unwrap_or(self.module);
        let named = |name: &str| format!("{file}::{name}");
        let pure = self.pure.iter().map(|&(name, test)| {
            let name = named(name);
            Trial::ignorable_test(name.clone(), move || Ok(checked(&name, || netns::on_own_thread(&name, test))))
        });
        let netns = self.netns.iter().map(|&(name, test)| {
            let (name, refused) = (named(name), namespaces.clone().err());
            Trial::ignorable_test(name.clone(), move || match refused {
                None => Ok(checked(&name, || netns::isolated(&name, test))),
                Some(why) if netns::required() => Err(Failed::from(why)),
                Some(why) => Ok(Completion::ignored_with(why)),
            })
        });
        pure.chain(netns).collect()
    }
}

/// Runs a test. If the test is not possible on this kernel or machine, it is reported as ignored and noted as not checked.
fn checked(name: &str, test: impl FnOnce()) -> Completion {
    match catch_unwind(AssertUnwindSafe(test)) {
        Ok(()) => Completion::Completed,
        Err(panic) => match panic.downcast::<kernel::NotChecked>() {
            Ok(reason) => {
                not_checked(format!("{name}: {}", reason.0));
                Completion::ignored_with(reason.0)
            }
            Err(panic) => resume_unwind(panic),
        },
    }
}

static GAPS: Mutex<Vec<String>> = Mutex::new(Vec::new());
static MEASURED: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Notes something that a test could not check here. The harness prints the note at the end of the run.
pub(crate) fn not_checked(what: impl Into<String>) {
    GAPS.lock().expect("no test panics while it notes a gap").push(what.into());
}

/// Everything that [`not_checked`] has noted.
pub(crate) fn gaps() -> Vec<String> {
    GAPS.lock().expect("no test panics while it notes a gap").clone()
}

/// Notes a count or a measurement of a test. The harness prints the note at the end of the run.
pub(crate) fn measured(what: impl Into<String>) {
    MEASURED.lock().expect("no test panics while it notes a number").push(what.into());
}

pub(crate) fn measurements() -> Vec<String> {
    MEASURED.lock().expect("no test panics while it notes a number").clone()
}
