//! Chat templates render as transformers renders them.

use banyan_engine::{Folder, Message, Refusal, Template};
use serde_json::{Value, json};

#[test]
fn templates_render_as_transformers_renders_them() {
    let golden: Value = serde_json::from_str(include_str!("templates.json")).expect("a golden file");
    let cases = golden["cases"].as_array().expect("cases");
    assert!(cases.len() > 40);
    for case in cases {
        let folder = tempfile::tempdir().expect("a folder for temporary files");
        let config = json!({"chat_template": case["template"], "bos_token": "<s>", "eos_token": {"content": "</s>"}});
        std::fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).expect("a file that can be written");
        let template = Template::open(&Folder::from(folder.path())).expect("a template that compiles");
        let messages: Vec<Message> = serde_json::from_value(case["messages"].clone()).expect("messages");
        match (template.render(&messages), case["refused"].as_str()) {
            (Ok(rendered), None) => assert_eq!(rendered.text, case["text"].as_str().expect("a text"), "{}", case["name"]),
            (Err(Refusal::Invalid { message, .. }), Some(refused)) => assert!(message.contains(refused), "{message}"),
            (other, _) => panic!("{}: {other:?}", case["name"]),
        }
    }
}
