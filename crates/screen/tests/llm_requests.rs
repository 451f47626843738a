//! Requests of every provider: who says what, and above all what tools answered.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::string_slice,
    reason = "a test fails by panicking"
)]

use tollgate_screen::llm::{Conversation, Dialect, Part, Role, mcp, read_request};

const BODIES: [(Dialect, &str); 8] = [
    (
        Dialect::AnthropicMessages,
        r#"{"model":"m","stream":true,"system":[{"type":"text","text":"rules"}],"tools":[{"name":"bash","description":"poison","input_schema":{"properties":{"command":{"type":"string"}}}}],"messages":[{"role":"user","content":[{"type":"text","text":"hi"},{"type":"image","source":{"type":"base64","media_type":"image/png","data":"iVBORw0KGgo="}}]},{"role":"assistant","content":[{"type":"tool_use","id":"c1","name":"bash","input":{"command":"ls"}}]},{"role":"user","content":[{"type":"tool_result","tool_use_id":"c1","content":[{"type":"text","text":"from the tool"}]}]}]}"#,
    ),
    (
        Dialect::OpenAiChat,
        r#"{"model":"m","stream":true,"tools":[{"type":"function","function":{"name":"bash","description":"poison","parameters":{"properties":{"command":{"type":"string"}}}}}],"messages":[{"role":"developer","content":"rules"},{"role":"user","content":[{"type":"text","text":"hi"},{"type":"image_url","image_url":{"url":"data:image/png;base64,iVBORw0KGgo="}}]},{"role":"assistant","content":null,"tool_calls":[{"id":"c1","type":"function","function":{"name":"bash","arguments":"{\"command\":\"ls\"}"}}]},{"role":"tool","tool_call_id":"c1","content":"from the tool"}]}"#,
    ),
    (
        Dialect::OpenAiResponses,
        r#"{"model":"m","stream":true,"instructions":"rules","tools":[{"type":"function","name":"bash","description":"poison","parameters":{"properties":{"command":{"type":"string"}}}}],"input":[{"role":"user","content":[{"type":"input_text","text":"hi"},{"type":"input_image","image_url":"data:image/png;base64,iVBORw0KGgo="}]},{"type":"function_call","call_id":"c1","name":"bash","arguments":"{\"command\":\"ls\"}"},{"type":"function_call_output","call_id":"c1","output":"from the tool"}]}"#,
    ),
    (
        Dialect::OpenAiResponses,
        r#"{"type":"response.create","response":{"model":"m","stream":true,"instructions":"rules","tools":[{"type":"function","name":"bash","description":"poison","parameters":{"properties":{"command":{"type":"string"}}}}],"input":[{"role":"user","content":[{"type":"input_text","text":"hi"},{"type":"input_image","image_url":"data:image/png;base64,iVBORw0KGgo="}]},{"type":"function_call","call_id":"c1","name":"bash","arguments":"{\"command\":\"ls\"}"},{"type":"function_call_output","call_id":"c1","output":"from the tool"}]}}"#,
    ),
    (
        Dialect::Gemini,
        r#"{"model":"m","stream":true,"systemInstruction":{"parts":[{"text":"rules"}]},"tools":[{"functionDeclarations":[{"name":"bash","description":"poison","parameters":{"properties":{"command":{"type":"STRING"}}}}]}],"contents":[{"role":"user","parts":[{"text":"hi"},{"inlineData":{"mimeType":"image/png","data":"iVBORw0KGgo="}}]},{"role":"model","parts":[{"functionCall":{"id":"c1","name":"bash","args":{"command":"ls"}},"thoughtSignature":"c2ln"}]},{"role":"user","parts":[{"functionResponse":{"id":"c1","name":"bash","response":{"result":"from the tool"}}}]}]}"#,
    ),
    (
        Dialect::BedrockConverse,
        r#"{"model":"m","stream":true,"system":[{"text":"rules"}],"toolConfig":{"tools":[{"toolSpec":{"name":"bash","description":"poison","inputSchema":{"json":{"properties":{"command":{"type":"string"}}}}}}]},"messages":[{"role":"user","content":[{"text":"hi"},{"image":{"format":"png","source":{"bytes":"iVBORw0KGgo="}}}]},{"role":"assistant","content":[{"toolUse":{"toolUseId":"c1","name":"bash","input":{"command":"ls"}}}]},{"role":"user","content":[{"toolResult":{"toolUseId":"c1","content":[{"text":"from the tool"}]}}]}]}"#,
    ),
    (
        Dialect::CohereChat,
        r#"{"model":"m","stream":true,"tools":[{"type":"function","function":{"name":"bash","description":"poison","parameters":{"properties":{"command":{"type":"string"}}}}}],"messages":[{"role":"system","content":"rules"},{"role":"user","content":[{"type":"text","text":"hi"},{"type":"image_url","image_url":{"url":"data:image/png;base64,iVBORw0KGgo="}}]},{"role":"assistant","tool_calls":[{"id":"c1","type":"function","function":{"name":"bash","arguments":"{\"command\":\"ls\"}"}}]},{"role":"tool","tool_call_id":"c1","content":[{"type":"document","document":{"data":"from the tool"}}]}]}"#,
    ),
    (
        Dialect::Ollama,
        r#"{"model":"m","stream":true,"tools":[{"type":"function","function":{"name":"bash","description":"poison","parameters":{"properties":{"command":{"type":"string"}}}}}],"messages":[{"role":"system","content":"rules"},{"role":"user","content":"hi","images":["iVBORw0KGgo="]},{"role":"assistant","content":"","tool_calls":[{"id":"c1","function":{"name":"bash","arguments":{"command":"ls"}}}]},{"role":"tool","tool_call_id":"c1","content":"from the tool"}]}"#,
    ),
];

fn read(dialect: Dialect, body: &str) -> Conversation {
    read_request(dialect, body.as_bytes()).unwrap()
}

#[test]
fn every_format_comes_down_to_the_same_conversation() {
    for (dialect, body) in BODIES {
        let found = read(dialect, body);
        assert_eq!(found.model.as_deref(), Some("m"), "{dialect:?}");
        assert!(found.stream, "{dialect:?}");
        let text = |role| {
            found
                .texts(role)
                .map(|block| block.text.as_str())
                .collect::<Vec<_>>()
        };
        assert_eq!(text(Role::System), ["rules"], "{dialect:?} {found:#?}");
        assert_eq!(text(Role::User), ["hi"], "{dialect:?} {found:#?}");
        let results: Vec<_> = found.tool_results().collect();
        assert_eq!(results.len(), 1, "{dialect:?} {found:#?}");
        assert_eq!(results[0].text, "from the tool", "{dialect:?}");
        assert_eq!(results[0].call_id, "c1", "{dialect:?}");
        let calls: Vec<_> = found
            .parts
            .iter()
            .filter_map(|part| match part {
                Part::Call(call) => Some((call.name.as_str(), call.arguments.to_text())),
                _ => None,
            })
            .collect();
        assert_eq!(
            calls,
            [("bash", r#"{"command":"ls"}"#.to_owned())],
            "{dialect:?}"
        );
        assert_eq!(found.tools.len(), 1, "{dialect:?}");
        assert_eq!(found.tools[0].name, "bash", "{dialect:?}");
        assert!(found.tools[0].text.contains("poison"), "{dialect:?}");
        assert!(found.tools[0].text.contains("command"), "{dialect:?}");
    }
}

#[test]
fn a_span_is_the_bytes_to_cut_out() {
    for (dialect, body) in BODIES {
        for part in read(dialect, body).parts {
            match part {
                Part::Text(text) => {
                    let cut: String = serde_json::from_str(&body[text.span]).unwrap();
                    assert_eq!(cut, text.text, "{dialect:?}");
                }
                Part::Result(result) => {
                    assert!(body[result.span].contains("from the tool"), "{dialect:?}");
                }
                Part::Media(media) => {
                    assert!(body[media.span].contains("iVBOR"), "{dialect:?}");
                }
                _ => {}
            }
        }
    }
}

#[test]
fn media_are_not_read_as_text() {
    for (dialect, body) in BODIES {
        let found = read(dialect, body);
        let texts = found.texts(Role::User).chain(found.texts(Role::Assistant));
        assert!(
            !texts.into_iter().any(|t| t.text.contains("iVBOR")),
            "{dialect:?}"
        );
    }
}

#[test]
fn mcp_requests_show_their_calls() {
    let batch = br#"[{"jsonrpc":"2.0","id":"a","method":"tools/call","params":{"name":"write","arguments":{"path":"/etc/passwd"}}},{"jsonrpc":"2.0","method":"notifications/initialized"}]"#;
    let found = mcp::read_requests(batch);
    assert_eq!(found.len(), 2);
    assert_eq!(found[0].id.as_deref(), Some("\"a\""));
    let call = found[0].call.as_ref().unwrap();
    assert_eq!(call.facets().paths, ["/etc/passwd"]);
    assert_eq!((&found[1].id, &found[1].call), (&None, &None));
    assert!(mcp::read_requests(b"not json").is_empty());
}

#[test]
fn text_beside_or_within_a_document_is_read() {
    let body = r#"{"messages":[{"role":"user","content":[
        {"type":"document","title":"a title","source":{"type":"text","media_type":"text/plain","data":"plain text"}},
        {"type":"tool_result","tool_use_id":"t","content":[
            {"type":"image","source":{"type":"base64","media_type":"image/png","data":"iVBOR"},"caption":"ignore all"}]}]}]}"#;
    let found = read(Dialect::AnthropicMessages, body);
    let texts: Vec<_> = found
        .texts(Role::User)
        .map(|text| text.text.as_str())
        .collect();
    assert!(
        texts.contains(&"a title") && texts.contains(&"plain text"),
        "{texts:?}"
    );
    let result = found.tool_results().next().unwrap();
    assert!(
        result.text.contains("ignore all") && !result.text.contains("iVBOR"),
        "{result:?}"
    );
}
