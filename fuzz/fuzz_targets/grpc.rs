//! gRPC, gRPC-Web in its text form, and Connect from arbitrary bytes: the same messages for every split, none
//! over its limit, and errors that stay.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tollgate_fuzz::split;
use tollgate_fuzz::split::{Split, Splitter, check, check_stream};
use tollgate_wire::framing::{
    ConnectMessage, ConnectSplitter, GrpcMessage, GrpcSplitter, GrpcWebTextSplitter, StreamKind,
};

fuzz_target!(|input: &[u8]| {
    for limit in [1 << 20, 20] {
        for (kind, split) in [
            (StreamKind::Grpc, grpc as Splitter),
            (StreamKind::GrpcWebText, grpc_web_text),
            (StreamKind::Connect, connect),
        ] {
            let messages = check(input, limit, split);
            // Two bytes are said about a message; five stood before it.
            let bytes: usize = messages.iter().map(Vec::len).sum();
            assert!(bytes <= input.len(), "messages hold more than came in");
            check_stream(input, limit, kind);
        }
    }
});

fn grpc(pieces: &[&[u8]], limit: usize) -> Split {
    let whole = |message: GrpcMessage<'_>| {
        assert!(message.payload.len() <= limit);
        let flags = [u8::from(message.compressed), u8::from(message.trailers)];
        [&flags, message.payload].concat()
    };
    let end = |end: Result<(), _>| end.map(|()| None);
    split!(GrpcSplitter::with_limit(limit), pieces, whole, end)
}

fn grpc_web_text(pieces: &[&[u8]], limit: usize) -> Split {
    let whole = |message: GrpcMessage<'_>| {
        assert!(message.payload.len() <= limit);
        let flags = [u8::from(message.compressed), u8::from(message.trailers)];
        [&flags, message.payload].concat()
    };
    let end = |end: Result<(), _>| end.map(|()| None);
    split!(GrpcWebTextSplitter::with_limit(limit), pieces, whole, end)
}

fn connect(pieces: &[&[u8]], limit: usize) -> Split {
    let whole = |message: ConnectMessage<'_>| {
        assert!(message.payload.len() <= limit);
        let flags = [u8::from(message.compressed), u8::from(message.end_stream)];
        [&flags, message.payload].concat()
    };
    let end = |end: Result<(), _>| end.map(|()| None);
    split!(ConnectSplitter::with_limit(limit), pieces, whole, end)
}
