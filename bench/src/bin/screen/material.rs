//! Clean text of several kinds, from what the repository has.

use std::fmt::Write as _;
use std::io;
use std::path::Path;

use tollgate_wire::coding::{Decoder, OutputLimit};

/// A kind of text.
pub(super) struct Material {
    pub name: &'static str,
    pub text: Vec<u8>,
}

/// Every text has at least this many bytes.
const LEAST: usize = 1 << 20;
/// The mixed text takes so many bytes of each kind in turn.
const SLICE: usize = 4096;

/// The kinds; the last is a mixture of the others.
pub(super) fn all() -> Result<Vec<Material>, Box<dyn std::error::Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let prose = files(&root.join("docs"), "md")?;
    let mut code = Vec::new();
    for name in ["wire", "flow", "engine", "store"] {
        code.extend(files(&root.join("crates").join(name).join("src"), "rs")?);
    }
    let listing = listing(&root)?;
    let mut all = vec![
        material("prose: the documentation", prose.concat()),
        material("code: Rust", code.concat()),
        material(
            "a conversation in JSON: both, as strings",
            conversation(&prose, &code),
        ),
        material("a listing in JSON", listing),
        material("log lines", log()),
    ];
    let mut mixed = Vec::new();
    let mut at = 0;
    while mixed.len() < 4 * LEAST {
        for kind in &all {
            let from = at % (kind.text.len() - SLICE);
            mixed.extend_from_slice(kind.text.get(from..from + SLICE).unwrap_or_default());
        }
        at += SLICE;
    }
    all.push(Material {
        name: "mixed: 4 KiB of each in turn",
        text: mixed,
    });
    Ok(all)
}

fn material(name: &'static str, once: Vec<u8>) -> Material {
    let times = LEAST.div_ceil(once.len().max(1));
    Material {
        name,
        text: once.repeat(times),
    }
}

/// The files below a folder whose names end so, in order.
fn files(folder: &Path, extension: &str) -> io::Result<Vec<Vec<u8>>> {
    let mut paths: Vec<_> = std::fs::read_dir(folder)?.collect::<io::Result<Vec<_>>>()?;
    paths.sort_by_key(std::fs::DirEntry::path);
    let mut out = Vec::new();
    for entry in paths {
        let path = entry.path();
        if path.is_dir() {
            out.extend(files(&path, extension)?);
        } else if path.extension().is_some_and(|own| own == extension) {
            out.push(std::fs::read(path)?);
        }
    }
    Ok(out)
}

fn listing(root: &Path) -> Result<Vec<u8>, Box<dyn std::error::Error>> {
    let packed = std::fs::read(root.join("bench/fixtures/listing.json.br"))?;
    let limit = OutputLimit {
        total: 64 << 20,
        per_feed: 64 << 20,
    };
    let mut plain = Vec::new();
    if let Some(mut decoder) = Decoder::new(std::iter::once(b"br".as_slice()), limit)? {
        decoder.feed(&packed, &mut plain)?;
        decoder.finish(&mut plain)?;
    }
    Ok(plain)
}

/// A request as an agent sends it: prose from the user, files from its tools.
fn conversation(prose: &[Vec<u8>], code: &[Vec<u8>]) -> Vec<u8> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let mut messages = Vec::new();
    for (at, (said, read)) in prose.iter().cycle().zip(code).enumerate() {
        messages.push(
            serde_json::json!({"role": "user", "content": text(said.get(..2000).unwrap_or(said))}),
        );
        let id = format!("toolu_{at:04}");
        messages.push(serde_json::json!({"role": "assistant", "content": [
            {"type": "tool_use", "id": id, "name": "read", "input": {"at": at}}]}));
        messages.push(serde_json::json!({"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": id, "content": text(read)}]}));
    }
    serde_json::json!({"model": "a-model", "max_tokens": 1024, "messages": messages})
        .to_string()
        .into_bytes()
}

/// What a web server writes, drawn from a fixed sequence.
fn log() -> Vec<u8> {
    let mut state = 7_u64;
    let mut draw = |below: u64| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let mut out = String::new();
    while out.len() < LEAST {
        let (minute, second, milli) = (draw(60), draw(60), draw(1000));
        let (path, status) = (
            draw(400),
            [200, 200, 200, 304, 404, 500]
                .get(draw(6) as usize)
                .copied()
                .unwrap_or(200),
        );
        let (id, size, took) = (draw(1 << 31), draw(90_000), draw(4000));
        let _ = writeln!(
            out,
            "2026-11-26T14:{minute:02}:{second:02}.{milli:03}Z INFO server: 198.51.100.{} \"GET /v1/projects/{path}/items?page={} \
             HTTP/1.1\" {status} {size} request={id:08x}-{:04x} took={took}us agent=\"Mozilla/5.0 (X11; Linux x86_64)\"",
            draw(250),
            draw(40),
            draw(1 << 16),
        );
    }
    out.into_bytes()
}
