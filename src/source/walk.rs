//! Walks over the sockets with sock_diag or with procfs.

use std::ops::ControlFlow;

use super::SourceError;
use crate::model::socket::{Socket, StateSet, TcpState};
use crate::sock_diag::dump::{self, DumpEnd, DumpError};
use crate::sock_diag::request::{Request, Walk};
use crate::sock_diag::transport::Transport;
use crate::sys;

/// How a walk over the sockets ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalkEnd {
    /// Whether the walk shows no sign of missing or repeated sockets.
    pub complete: bool,
    /// The number of sockets that a second dump added: sockets that the first dump lost, and new sockets.
    pub recovered: usize,
    /// How often an interrupted walk was repeated.
    pub repeats: u32,
}

impl WalkEnd {
    pub(super) const WHOLE: Self = Self { complete: true, recovered: 0, repeats: 0 };
}

pub(super) fn with_listeners(request: Request) -> Request {
    Request { states: request.states.union(StateSet::of(&[TcpState::Listen])), ..request }
}

pub(super) fn walk_procfs(
    states: StateSet,
    each: &mut impl FnMut(&Socket) -> ControlFlow<()>,
) -> Result<WalkEnd, SourceError> {
    let mut wanted =
        |socket: &Socket| if states.contains(socket.state()) { each(socket) } else { ControlFlow::Continue(()) };
    sys::proc_net_tcp::walk(&mut wanted).map_err(SourceError::Procfs)?;
    Ok(WalkEnd::WHOLE)
}

/// Walks both families. If the kernel refuses the request, this function sends simpler ones: first a request without the
/// filter program, then a request for each family.
pub(super) fn walk_sock_diag(
    transport: &mut dyn Transport,
    request: &Request,
    each: &mut (impl FnMut(&Socket) -> ControlFlow<()> + Send),
) -> Result<WalkEnd, DumpError> {
    let mut end = dump::run(transport, request, each);
    let without_program = Request { program: None, ..*request };
    if request.program.is_some() && matches!(end, Err(DumpError::Refused { .. })) {
        end = dump::run(transport, &without_program, each);
    }
    match end {
        Err(DumpError::Refused { .. }) => walk_by_family(transport, &without_program, each),
        end => {
            let DumpEnd { interrupted, recovered, .. } = end?;
            Ok(WalkEnd { complete: !interrupted, recovered, repeats: 0 })
        }
    }
}

/// Walks one family after the other, for kernels that refuse a request for both. The listeners of both families come first.
fn walk_by_family(
    transport: &mut dyn Transport,
    request: &Request,
    each: &mut (impl FnMut(&Socket) -> ControlFlow<()> + Send),
) -> Result<WalkEnd, DumpError> {
    let listen = StateSet::of(&[TcpState::Listen]);
    let others = request.states.without(listen);
    let (mut whole, mut began) = (WalkEnd::WHOLE, false);
    for states in [request.states.without(others), others] {
        for walk in [Walk::Ipv4, Walk::Ipv6] {
            if states.is_empty() {
                continue;
            }
            let DumpEnd { interrupted, stopped, recovered } =
                match dump::run(transport, &Request { walk, states, ..request.clone() }, each) {
                    // `each` may have seen sockets, which a fallback to procfs would repeat.
                    Err(DumpError::Refused { walk, errno }) if began => {
                        return Err(DumpError::BrokenOff { walk, errno });
                    }
                    end => end?,
                };
            began = true;
            whole.complete &= !interrupted;
            whole.recovered += recovered;
            if stopped {
                return Ok(whole);
            }
        }
    }
    Ok(whole)
}
