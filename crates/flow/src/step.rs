//! What an interceptor answers.

use std::borrow::Cow;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use tollgate_wire::headers::{HeaderList, InvalidHeader};

use crate::flow::Flow;

/// A change that a held hook makes to its flow once it is done waiting.
pub type Edit = Box<dyn FnOnce(&mut Flow) -> Step + Send>;

/// What happens next with a flow.
#[derive(Debug, Default)]
#[must_use]
pub enum Step {
    /// Go on: to the next interceptor, then along the wire.
    #[default]
    Continue,
    /// Answer the client with this reply instead of the origin's. In `request` nothing reaches the
    /// origin; in `response` the origin's answer is discarded. Not possible once response bytes
    /// have left: the flow is then closed.
    Respond(Box<Reply>),
    /// In `data`: these bytes go on instead of the piece. Needs `Interest::EDIT_*_DATA`. In
    /// `message`: this content goes on instead, as a message of the same kind. Needs
    /// `Interest::EDIT_MESSAGES`.
    Replace(Bytes),
    /// In `data` and `message`: the piece, or message, does not go on. In `request` and `response`: the flow is dropped, the
    /// client's connection closed without an answer.
    Drop,
    /// Close the client's connection now; the reason is recorded. In `message` of a WebSocket: both
    /// sides get a close frame with code 1008, the client's with the reason.
    Close(Cow<'static, str>),
    /// Wait for something: a person, a remote scanner, a model.
    Hold(Hold),
    /// Change the flow, then do as the function says. What a [`Hold`]'s future yields when it needs the flow.
    Edit(EditStep),
}

impl Step {
    /// [`Step::Respond`] without writing the box.
    pub fn respond(reply: Reply) -> Self {
        Self::Respond(Box::new(reply))
    }

    /// [`Step::Close`].
    pub fn close(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::Close(reason.into())
    }

    /// [`Step::Edit`] from a function.
    pub fn edit(edit: impl FnOnce(&mut Flow) -> Step + Send + 'static) -> Self {
        Self::Edit(EditStep(Box::new(edit)))
    }

    /// Waits for `future`, at most `deadline`, after which `at_deadline` is the answer.
    ///
    /// ```
    /// # use tollgate_flow::{Reply, Step};
    /// # use std::time::Duration;
    /// let step = Step::hold(
    ///     async { Step::Continue },
    ///     Duration::from_secs(30),
    ///     Step::respond(Reply::new(504).text("nobody decided in time")),
    /// );
    /// ```
    pub fn hold(
        future: impl Future<Output = Step> + Send + 'static,
        deadline: Duration,
        at_deadline: Step,
    ) -> Self {
        Self::Hold(Hold {
            future: Box::pin(future),
            deadline,
            at_deadline: Box::new(at_deadline),
            keep_alive: None,
        })
    }

    /// What a client gets while it waits, if this is a [`Hold`]. Else nothing happens.
    ///
    /// ```
    /// # use tollgate_flow::{Bytes, KeepAlive, Step};
    /// # use std::time::Duration;
    /// let comment = KeepAlive { every: Duration::from_secs(10), bytes: Bytes::from_static(b": hold\n\n") };
    /// let step = Step::hold(async { Step::Continue }, Duration::from_secs(120), Step::Drop);
    /// let step = step.keeping_alive(Some(comment));
    /// ```
    pub fn keeping_alive(mut self, keep_alive: Option<KeepAlive>) -> Self {
        if let Self::Hold(hold) = &mut self {
            hold.keep_alive = keep_alive;
        }
        self
    }
}

/// The function in [`Step::Edit`].
pub struct EditStep(pub Edit);

impl fmt::Debug for EditStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Edit")
    }
}

/// A wait with a deadline and a declared answer for it.
pub struct Hold {
    /// Yields the step to take. Polled on the connection's own task.
    pub future: Pin<Box<dyn Future<Output = Step> + Send>>,
    /// The longest wait.
    pub deadline: Duration,
    /// The answer when the deadline passes.
    pub at_deadline: Box<Step>,
    /// In `data` of a response, with `Interest::EDIT_RESPONSE_DATA`: what the client gets while it waits. Nothing, if an
    /// interceptor behind this one edits the body, too: only the last one knows what the client has.
    pub keep_alive: Option<KeepAlive>,
}

/// Signs of life for a client that waits: bytes that its program passes over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeepAlive {
    /// How long nothing is sent. Not zero.
    pub every: Duration,
    /// What is sent then.
    pub bytes: Bytes,
}

impl fmt::Debug for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hold")
            .field("deadline", &self.deadline)
            .field("at_deadline", &self.at_deadline)
            .field("keep_alive", &self.keep_alive)
            .finish_non_exhaustive()
    }
}

/// A response made by the proxy.
#[derive(Clone, Debug, Default)]
pub struct Reply {
    /// The status code, 200 to 599.
    pub status: u16,
    /// The reason phrase; empty for the standard one.
    pub reason: Cow<'static, str>,
    /// The headers, without framing (the engine adds `Content-Length`). To HEAD, a reply without a body may have a
    /// `Content-Length`: how long the body would be.
    pub headers: HeaderList,
    /// The body.
    pub body: Bytes,
    /// How the body is cut, and when its pieces leave. Empty: it leaves at once, with a `Content-Length`. Else it is sent
    /// in chunks (HTTP/1.1) or without a length (HTTP/2, HTTP/3), unless `headers` has a `Content-Length`, whose value is
    /// put right. What the pieces leave over follows the last one.
    pub pieces: Vec<PieceMark>,
    /// Trailers. With them, too, the body is sent without a length; a client of HTTP/1.0 doesn't get them.
    pub trailers: Option<HeaderList>,
}

/// Where a body is cut, and when what stands before passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PieceMark {
    /// How many bytes the piece has.
    pub bytes: usize,
    /// How long after the head it passes.
    pub at: Duration,
}

impl Reply {
    /// An empty reply. A status outside 200..=599 is sent as 500.
    pub fn new(status: u16) -> Self {
        Self {
            status,
            ..Self::default()
        }
    }

    /// Adds a header.
    pub fn header(mut self, name: &str, value: &str) -> Result<Self, InvalidHeader> {
        self.headers.append(name.as_bytes(), value.as_bytes())?;
        Ok(self)
    }

    /// Sets the body and, if there is none yet, `Content-Type: text/plain; charset=utf-8`.
    pub fn text(mut self, text: impl Into<String>) -> Self {
        self.body = Bytes::from(text.into());
        if !self.headers.contains("content-type") {
            // A constant that is a valid header.
            let _ = self
                .headers
                .append(b"Content-Type", b"text/plain; charset=utf-8");
        }
        self
    }

    /// Whether it is more than a head and a body of known length.
    pub fn is_streamed(&self) -> bool {
        !self.pieces.is_empty() || self.trailers.is_some()
    }

    /// The body as it is sent: its pieces, each with the time after the head at which it leaves.
    ///
    /// ```
    /// # use tollgate_flow::{Reply, PieceMark};
    /// # use std::time::Duration;
    /// let mut reply = Reply::new(200).body("abcde");
    /// reply.pieces = vec![PieceMark { bytes: 2, at: Duration::from_millis(5) }];
    /// let sent: Vec<_> = reply.cut().map(|(piece, at)| (piece, at.as_millis())).collect();
    /// assert_eq!(sent, [("ab".into(), 5), ("cde".into(), 5)]);
    /// ```
    pub fn cut(&self) -> impl Iterator<Item = (Bytes, Duration)> + '_ {
        let mut rest = self.body.clone();
        let mut last = Duration::ZERO;
        let mut pieces = self.pieces.iter();
        std::iter::from_fn(move || {
            loop {
                if rest.is_empty() {
                    return None;
                }
                let Some(piece) = pieces.next() else {
                    return Some((std::mem::take(&mut rest), last));
                };
                last = last.max(piece.at);
                if piece.bytes > 0 {
                    return Some((rest.split_to(piece.bytes.min(rest.len())), last));
                }
            }
        })
    }

    /// Sets the body.
    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }
}
