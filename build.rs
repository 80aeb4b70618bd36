//! Links the unwinder of libgcc into the program, where there is a static one, in place of libgcc_s.so.
//!
//! That library asks the processor what it can do each time it is loaded (`__cpu_indicator_init`, about ten CPUID
//! instructions), and on a virtual machine each of them is a trip to the hypervisor, 6 us where it was measured (2026-11-25).
//! With the loading that is 0.1 ms of the 1.5 ms that a short list takes. Nothing else of it is needed.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let target = |key: &str| env::var(format!("CARGO_CFG_TARGET_{key}")).unwrap_or_default();
    let links_it = [target("ARCH"), target("OS"), target("ENV")] == ["x86_64", "linux", "gnu"]
        && !target("FEATURE").contains("crt-static");
    let Some(out) = env::var_os("OUT_DIR").map(PathBuf::from) else { return };
    if !links_it || !has_static_unwinder() {
        return;
    }
    // std asks for -lgcc_s; the linker takes this script for it.
    if fs::write(out.join("libgcc_s.so"), "GROUP ( -lgcc_eh -lc )\n").is_ok() {
        println!("cargo:rustc-link-arg-bins=-L{}", out.display());
    }
}

/// Whether the linker knows where libgcc_eh.a is: asked for a library that it does not have, it repeats the name.
fn has_static_unwinder() -> bool {
    let linker = env::var_os("RUSTC_LINKER").unwrap_or_else(|| "cc".into());
    let answer = Command::new(linker).arg("-print-file-name=libgcc_eh.a").output();
    answer.is_ok_and(|answer| Path::new(String::from_utf8_lossy(&answer.stdout).trim()).is_absolute())
}
