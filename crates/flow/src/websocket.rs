//! A flow that became a WebSocket, and the handle that speaks into it.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use tollgate_wire::websocket::is_valid_close_code;

use crate::interceptor::Direction;
use crate::outcome::Side;

/// What is known of the WebSocket that a flow became.
#[derive(Clone, Debug, Default)]
pub struct WebSocket {
    /// Texts and binary messages that the client has sent.
    pub client_messages: u64,
    /// Texts and binary messages that the origin has sent.
    pub origin_messages: u64,
    /// The close frame that came first.
    pub close: Option<WebSocketClose>,
    handle: Option<WebSocketHandle>,
}

/// How a WebSocket was closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebSocketClose {
    /// Who began it.
    pub by: Side,
    /// The code, where the frame has one.
    pub code: Option<u16>,
    /// The reason, mostly empty.
    pub reason: String,
}

impl WebSocket {
    /// A WebSocket that has just been opened; with a handle, it can be spoken into.
    pub fn new(handle: Option<WebSocketHandle>) -> Self {
        Self {
            handle,
            ..Self::default()
        }
    }

    /// Sends messages into the WebSocket from anywhere. `None` unless an interceptor asked for
    /// [`Interest::EDIT_MESSAGES`](crate::Interest::EDIT_MESSAGES): otherwise frames pass as they are.
    pub fn handle(&self) -> Option<&WebSocketHandle> {
        self.handle.as_ref()
    }
}

/// Sends messages into a WebSocket, and closes it. Clones speak into the same one.
///
/// Nothing waits here: a message is queued, and leaves between two messages of the peer. They are
/// offered to interceptors like the others, with [`Message::injected`](crate::Message::injected).
///
/// ```
/// use tollgate_flow::{Direction, WebSocketHandle};
///
/// fn greet(handle: &WebSocketHandle) {
///     // Full or over: then there is nobody to greet.
///     let _ = handle.send_text(Direction::Response, "hello from the proxy");
/// }
/// ```
#[derive(Clone, Default)]
pub struct WebSocketHandle(Arc<Mutex<Queues>>);

#[derive(Default)]
struct Queues {
    request: Queue,
    response: Queue,
    /// Nothing more is taken.
    over: bool,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Injected>,
    bytes: usize,
    waker: Option<Waker>,
}

/// What a [`WebSocketHandle`] asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Injected {
    /// Send a text.
    Text(String),
    /// Send binary data.
    Binary(Bytes),
    /// Close, towards both sides.
    Close {
        /// The code.
        code: u16,
        /// The reason.
        reason: String,
    },
}

/// Why nothing was queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InjectError {
    /// The peer doesn't take what is queued already.
    #[error("the queue is full")]
    Full,
    /// The WebSocket is over.
    #[error("the WebSocket is over")]
    Over,
    /// A close code that may not be sent.
    #[error("close code {0} may not be sent")]
    InvalidCode(u16),
}

impl WebSocketHandle {
    /// Messages that wait in one direction at most.
    pub const MAX_WAITING: usize = 256;
    /// Bytes that wait in one direction at most.
    pub const MAX_WAITING_BYTES: usize = 8 << 20;

    /// A handle whose messages wait for the engine.
    pub fn new() -> Self {
        Self::default()
    }

    /// Queues a text towards the origin ([`Direction::Request`]) or the client.
    ///
    /// # Errors
    /// [`InjectError::Full`] at [`MAX_WAITING`](Self::MAX_WAITING) messages or
    /// [`MAX_WAITING_BYTES`](Self::MAX_WAITING_BYTES); [`InjectError::Over`].
    pub fn send_text(
        &self,
        direction: Direction,
        text: impl Into<String>,
    ) -> Result<(), InjectError> {
        self.push(direction, Injected::Text(text.into()))
    }

    /// Queues binary data, as [`send_text`](Self::send_text) does a text.
    ///
    /// # Errors
    /// The same.
    pub fn send_binary(
        &self,
        direction: Direction,
        data: impl Into<Bytes>,
    ) -> Result<(), InjectError> {
        self.push(direction, Injected::Binary(data.into()))
    }

    /// Closes the WebSocket on both sides, after what is queued already.
    ///
    /// # Errors
    /// [`InjectError::InvalidCode`], [`InjectError::Over`].
    pub fn close(&self, code: u16, reason: impl Into<String>) -> Result<(), InjectError> {
        if !is_valid_close_code(code) {
            return Err(InjectError::InvalidCode(code));
        }
        let reason = reason.into();
        let mut queues = self.lock();
        if queues.over {
            return Err(InjectError::Over);
        }
        queues.over = true;
        for direction in [Direction::Request, Direction::Response] {
            let reason = reason.clone();
            queues.of(direction).push(Injected::Close { code, reason });
        }
        Ok(())
    }

    /// The next thing to send in a direction: the engine's side.
    pub fn poll_next(&self, direction: Direction, cx: &mut Context<'_>) -> Poll<Injected> {
        let mut queues = self.lock();
        let queue = queues.of(direction);
        match queue.waiting.pop_front() {
            Some(next) => {
                queue.bytes -= next.len().min(queue.bytes);
                Poll::Ready(next)
            }
            None => {
                queue.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    /// Lets go of what is queued, and takes no more: the engine's side.
    pub fn end(&self) {
        *self.lock() = Queues {
            over: true,
            ..Queues::default()
        };
    }

    fn push(&self, direction: Direction, injected: Injected) -> Result<(), InjectError> {
        let mut queues = self.lock();
        if queues.over {
            return Err(InjectError::Over);
        }
        let queue = queues.of(direction);
        if queue.waiting.len() >= Self::MAX_WAITING
            || queue.bytes.saturating_add(injected.len()) > Self::MAX_WAITING_BYTES
        {
            return Err(InjectError::Full);
        }
        queue.push(injected);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Queues> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for WebSocketHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WebSocketHandle")
    }
}

impl Queues {
    fn of(&mut self, direction: Direction) -> &mut Queue {
        match direction {
            Direction::Request => &mut self.request,
            Direction::Response => &mut self.response,
        }
    }
}

impl Queue {
    fn push(&mut self, injected: Injected) {
        self.bytes += injected.len();
        self.waiting.push_back(injected);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

impl Injected {
    fn len(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Binary(data) => data.len(),
            Self::Close { reason, .. } => reason.len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_is_bounded_and_leaves_in_order() {
        let handle = WebSocketHandle::new();
        for i in 0..WebSocketHandle::MAX_WAITING {
            handle.send_text(Direction::Request, i.to_string()).unwrap();
        }
        assert_eq!(
            handle.send_text(Direction::Request, ""),
            Err(InjectError::Full)
        );
        let large = vec![0; WebSocketHandle::MAX_WAITING_BYTES + 1];
        assert_eq!(
            handle.send_binary(Direction::Response, large),
            Err(InjectError::Full)
        );
        handle.close(1000, "done").unwrap();
        let mut cx = Context::from_waker(Waker::noop());
        for i in 0..WebSocketHandle::MAX_WAITING {
            let next = handle.poll_next(Direction::Request, &mut cx);
            assert_eq!(next, Poll::Ready(Injected::Text(i.to_string())));
        }
        for direction in [Direction::Request, Direction::Response] {
            let close = Injected::Close {
                code: 1000,
                reason: "done".to_owned(),
            };
            assert_eq!(handle.poll_next(direction, &mut cx), Poll::Ready(close));
            assert!(handle.poll_next(direction, &mut cx).is_pending());
        }
        assert_eq!(handle.close(1000, ""), Err(InjectError::Over));
        assert_eq!(
            handle.send_text(Direction::Request, ""),
            Err(InjectError::Over)
        );
        assert_eq!(handle.close(1005, ""), Err(InjectError::InvalidCode(1005)));
    }
}
