//! A switch that ends everything.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tollgate_flow::{
    ConnectDecision, ConnectionInfo, Flow, FlowKind, Interceptor, Interest, Message, Piece, Reply,
    Step, Target,
};

/// Refuses what comes and cuts what passes, while it is on. Clones are the same switch.
///
/// While it is off it costs a look at each piece that passes. Add it as the first interceptor.
///
/// ```
/// use tollgate_rules::KillSwitch;
///
/// let switch = KillSwitch::default();
/// // Proxy::builder().interceptor(switch.clone()) …
/// switch.set(true);
/// assert!(switch.is_on());
/// ```
#[derive(Clone, Debug, Default)]
pub struct KillSwitch(Arc<AtomicBool>);

impl KillSwitch {
    /// Turns it on or off.
    pub fn set(&self, on: bool) {
        self.0.store(on, Ordering::Relaxed);
    }

    /// Whether it is on.
    pub fn is_on(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    fn cut(&self) -> Step {
        match self.is_on() {
            true => Step::close("the kill switch is on"),
            false => Step::Continue,
        }
    }
}

impl Interceptor for KillSwitch {
    fn name(&self) -> &str {
        "kill switch"
    }

    fn connect(&self, _: &Target, _: &ConnectionInfo) -> ConnectDecision {
        match self.is_on() {
            true => ConnectDecision::Block,
            false => ConnectDecision::Default,
        }
    }

    fn interest(&self, flow: &Flow) -> Interest {
        let all = Interest::REQUEST | Interest::DATA;
        match flow.kind {
            FlowKind::Http if flow.request.headers().has_token("upgrade", "websocket") => {
                all | Interest::MESSAGES
            }
            _ => all,
        }
    }

    fn request(&self, _: &mut Flow) -> Step {
        match self.is_on() {
            true => Step::respond(Reply::new(503).text("Tollgate: the kill switch is on\n")),
            false => Step::Continue,
        }
    }

    fn data(&self, _: &mut Flow, _: Piece<'_>) -> Step {
        self.cut()
    }

    fn message(&self, _: &mut Flow, _: Message<'_>) -> Step {
        self.cut()
    }
}
