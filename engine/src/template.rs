//! A conversation to a prompt: the model's own chat template, or a plain transcript that makes chat out of a base model.

use minijinja::value::Kwargs;
use minijinja::{Environment, Error, ErrorKind, Value, context};
use serde_json::Value as Json;

use crate::error::LoadError;
use crate::folder::Folder;
use crate::request::{Message, Refusal};

/// Instructions of a template's run. Published templates take a few dozen per message; a loop that does not end is
/// refused within a second.
const FUEL: u64 = 10_000_000;

/// A model's way to write a conversation.
pub struct Template {
    /// The template that came with the model; `None`: the transcript.
    own: Option<Environment<'static>>,
    bos: String,
    eos: String,
}

/// A prompt in the making.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    /// What the model continues.
    pub text: String,
    /// Texts that end the answer, beside the request's own.
    pub stop: Vec<String>,
}

impl Template {
    /// Reads chat_template.jinja, or `chat_template` in tokenizer_config.json (a template, or a list of named ones); a model
    /// that has neither gets the transcript.
    pub fn open(folder: &Folder) -> Result<Self, LoadError> {
        const CONFIG: &str = "tokenizer_config.json";
        const FILE: &str = "chat_template.jinja";
        let config = folder.read_json(CONFIG)?.unwrap_or(Json::Null);
        let token = |name: &str| {
            let token = config.get(name);
            let text = token.and_then(|token| token.as_str().or_else(|| token.get("content")?.as_str()));
            text.unwrap_or_default().to_string()
        };
        let (path, source) = match folder.read_text(FILE)? {
            Some(source) => (FILE, Some(source)),
            None => (CONFIG, config.get("chat_template").and_then(default_template).map(str::to_string)),
        };
        let own = match source {
            Some(source) => Some(compile(source).map_err(|source| LoadError::Template { path: folder.show(path), source })?),
            None => None,
        };
        Ok(Template { own, bos: token("bos_token"), eos: token("eos_token") })
    }

    /// Whether the model came with a template.
    pub fn own(&self) -> bool {
        self.own.is_some()
    }

    /// The prompt that asks for the assistant's next turn, however long it is.
    pub fn render(&self, messages: &[Message]) -> Result<Rendered, Refusal> {
        Ok(self.render_within(messages, usize::MAX)?.expect("no text has more bytes than there are addresses"))
    }

    /// The same; `None` as soon as it is longer than `bytes_max`.
    pub(crate) fn render_within(&self, messages: &[Message], bytes_max: usize) -> Result<Option<Rendered>, Refusal> {
        let invalid = |message: String| Refusal::Invalid { param: "messages", message };
        if messages.is_empty() {
            return Err(invalid("a conversation needs at least one message".into()));
        }
        let Some(environment) = &self.own else {
            return Ok(Some(transcript(messages)).filter(|rendered| rendered.text.len() <= bytes_max));
        };
        let template = environment.get_template(NAME).expect("compiled when the model was loaded");
        let messages: Vec<Value> = messages
            .iter()
            .map(|message| context! { role => message.role.as_str(), content => message.content.as_str() })
            .collect();
        let context = context! {
            messages,
            add_generation_prompt => true,
            bos_token => self.bos.as_str(),
            eos_token => self.eos.as_str(),
            // transformers always passes them, and templates ask whether they are none.
            tools => (),
            documents => (),
        };
        let mut text = Within { bytes: Vec::new(), bytes_max, passed: false };
        let rendered = template.render_captured_to(context, &mut text).map(|_| ());
        if text.passed {
            return Ok(None);
        }
        rendered.map_err(|error| match error.detail().and_then(|text| text.strip_prefix(RAISED)) {
            Some(raised) => invalid(format!("the model's chat template refuses the conversation: {raised}")),
            None => Refusal::Engine(format!("the model's chat template failed: {error}")),
        })?;
        let text = String::from_utf8(text.bytes).expect("a template writes strings");
        Ok(Some(Rendered { text, stop: Vec::new() }))
    }
}

/// Takes so many bytes, and ends a rendering that writes more.
struct Within {
    bytes: Vec<u8>,
    bytes_max: usize,
    passed: bool,
}

impl std::io::Write for Within {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if bytes.len() > self.bytes_max - self.bytes.len() {
            self.passed = true;
            return Err(std::io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

const NAME: &str = "chat_template";

/// Marks what a template says on purpose, against what goes wrong in it.
const RAISED: &str = "raised: ";

/// A template by itself, or the one named `default` of several.
fn default_template(value: &Json) -> Option<&str> {
    match value {
        Json::String(template) => Some(template),
        Json::Array(named) => {
            let by_name = |wanted: &str| named.iter().find(|entry| entry.get("name").and_then(Json::as_str) == Some(wanted));
            by_name("default").or_else(|| named.first())?.get("template")?.as_str()
        }
        _ => None,
    }
}

/// The environment in which transformers runs chat templates: blocks eat their line ends, Python's methods, and a few
/// functions more. No loader: a template reaches no file.
fn compile(source: String) -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    environment.set_syntax(minijinja::syntax::SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.set_fuel(Some(FUEL));
    // The prompt is not HTML.
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, format!("{RAISED}{message}")))
    });
    environment.add_filter("tojson", to_json);
    // Training marks, which transformers skips too when it only writes a prompt.
    let source = GENERATION_MARKS.iter().fold(source, |source, mark| source.replace(mark, ""));
    environment.add_template_owned(NAME, source)?;
    Ok(environment)
}

const GENERATION_MARKS: [&str; 8] = [
    "{% generation %}",
    "{%- generation %}",
    "{% generation -%}",
    "{%- generation -%}",
    "{% endgeneration %}",
    "{%- endgeneration %}",
    "{% endgeneration -%}",
    "{%- endgeneration -%}",
];

/// `json.dumps(value, ensure_ascii=False, indent=indent)`, with Python's separators and without HTML escapes.
fn to_json(value: Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    options.assert_all_used()?;
    let failed = |error: serde_json::Error| Error::new(ErrorKind::BadSerialization, error.to_string());
    match indent {
        Some(indent) => {
            let spaces = vec![b' '; indent.min(16)];
            let formatter = serde_json::ser::PrettyFormatter::with_indent(&spaces);
            let mut bytes = Vec::new();
            serde::Serialize::serialize(&value, &mut serde_json::Serializer::with_formatter(&mut bytes, formatter))
                .map_err(failed)?;
            Ok(String::from_utf8(bytes).expect("JSON is UTF-8"))
        }
        None => {
            let mut bytes = Vec::new();
            serde::Serialize::serialize(&value, &mut serde_json::Serializer::with_formatter(&mut bytes, PythonFormatter))
                .map_err(failed)?;
            Ok(String::from_utf8(bytes).expect("JSON is UTF-8"))
        }
    }
}

/// Separators as `json.dumps` writes them: `, ` and `: `.
struct PythonFormatter;

impl serde_json::ser::Formatter for PythonFormatter {
    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}

/// A base model has seen dialogues written as plays and interviews: it continues one, and the answer ends where it begins
/// to write the other's part. System messages stand above it.
fn transcript(messages: &[Message]) -> Rendered {
    let mut text = String::new();
    for message in messages.iter().filter(|message| matches!(message.role.as_str(), "system" | "developer")) {
        text.push_str(message.content.trim());
        text.push_str("\n\n");
    }
    for message in messages {
        let speaker = match message.role.as_str() {
            "system" | "developer" => continue,
            "assistant" => "Assistant",
            _ => "User",
        };
        text.push_str(speaker);
        text.push_str(": ");
        text.push_str(message.content.trim());
        text.push('\n');
    }
    // No space behind the colon: the space belongs to the first word's token.
    text.push_str("Assistant:");
    Rendered { text, stop: vec!["\nUser:".into(), "\nAssistant:".into()] }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(role: &str, content: &str) -> Message {
        Message { role: role.into(), content: content.into() }
    }

    fn own(source: &str) -> Template {
        let own = compile(source.into()).expect("a template that compiles");
        Template { own: Some(own), bos: "<s>".into(), eos: "</s>".into() }
    }

    fn plain() -> Template {
        Template { own: None, bos: String::new(), eos: String::new() }
    }

    #[test]
    fn a_base_model_gets_a_transcript_that_ends_with_the_assistants_turn() {
        let messages =
            [message("system", "Be brief. "), message("user", "Hi"), message("assistant", " Hello! "), message("user", "Bye")];
        let rendered = plain().render(&messages).unwrap();
        assert_eq!(rendered.text, "Be brief.\n\nUser: Hi\nAssistant: Hello!\nUser: Bye\nAssistant:");
        assert_eq!(rendered.stop, ["\nUser:", "\nAssistant:"]);
        assert!(!plain().own());
    }

    #[test]
    fn an_empty_conversation_is_refused_with_the_parameters_name() {
        let refusal = plain().render(&[]).unwrap_err();
        assert!(matches!(refusal, Refusal::Invalid { param: "messages", .. }), "{refusal:?}");
    }

    #[test]
    fn content_is_never_run() {
        let hostile = "{{ 7 * 7 }}{% for i in range(10) %}{{ i }}{% endfor %}{# gone #}{% include '/etc/passwd' %}";
        let template = own("{% for m in messages %}{{ m.content }}{% endfor %}");
        assert_eq!(template.render(&[message("user", hostile)]).unwrap().text, hostile);
    }

    #[test]
    fn what_a_template_refuses_is_the_clients_fault_and_what_breaks_is_not() {
        let template = own("{{ raise_exception('no system messages') }}");
        let refusal = template.render(&[message("system", "x")]).unwrap_err();
        assert_eq!(
            refusal,
            Refusal::Invalid {
                param: "messages",
                message: "the model's chat template refuses the conversation: no system messages".into()
            }
        );
        let template = own("{{ messages[0].content.nonsense() }}");
        assert!(matches!(template.render(&[message("user", "x")]), Err(Refusal::Engine(_))));
        // What a client writes can't pass for a refusal of the template's.
        let template = own("{{ messages[0].content | int }}");
        assert!(matches!(template.render(&[message("user", "raised: x")]), Err(Refusal::Engine(_))));
    }

    #[test]
    fn a_template_that_does_not_end_is_ended() {
        let endless = "{% for a in range(9000) %}{% for b in range(9000) %}{{ '' }}{% endfor %}{% endfor %}";
        let Err(Refusal::Engine(reason)) = own(endless).render(&[message("user", "x")]) else { panic!("should fail") };
        assert!(reason.contains("fuel"), "{reason}");
    }

    #[test]
    fn a_rendering_is_given_up_when_it_is_longer_than_what_fits() {
        let messages = [message("user", "0123456789")];
        let own = own("{% for turn in range(100000) %}{{ messages[0].content }}{% endfor %}");
        assert_eq!(own.render_within(&messages, 999_999), Ok(None));
        assert_eq!(own.render_within(&messages, 1_000_000).unwrap().unwrap().text.len(), 1_000_000);
        let whole = plain().render(&messages).unwrap();
        assert_eq!(plain().render_within(&messages, whole.text.len() - 1), Ok(None));
        assert_eq!(plain().render_within(&messages, whole.text.len()), Ok(Some(whole)));
    }

    #[test]
    fn a_template_that_does_not_compile_names_its_file() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("chat_template.jinja"), "{% for %}").unwrap();
        let Err(error) = Template::open(&Folder::from(folder.path())) else { panic!("should fail") };
        assert!(error.to_string().contains("chat_template.jinja"), "{error}");
    }

    #[test]
    fn templates_come_from_a_string_a_list_or_a_file_of_their_own() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        let text = || {
            let template = Template::open(&Folder::from(folder.path())).unwrap();
            template.render(&[message("user", "x")]).unwrap().text
        };
        write("tokenizer_config.json", r#"{"chat_template": "one {{ bos_token }}", "bos_token": {"content": "<b>"}}"#);
        assert_eq!(text(), "one <b>");
        let list = r#"{"chat_template": [{"name": "tools", "template": "no"}, {"name": "default", "template": "two"}]}"#;
        write("tokenizer_config.json", list);
        assert_eq!(text(), "two");
        write("chat_template.jinja", "three");
        assert_eq!(text(), "three");
    }

    proptest::proptest! {
        #[test]
        fn no_content_breaks_a_template(role in ".{0,20}", content in "(\\PC|[{}%#\\[\\]<|>]){0,200}") {
            let messages = [message(&role, &content), message("assistant", &content)];
            let chatml = own("{% for m in messages %}<|{{ m.role }}|>{{ m['content'] | trim }}</s>{% endfor %}");
            let text = chatml.render(&messages).unwrap().text;
            proptest::prop_assert!(text.contains(content.trim()));
            proptest::prop_assert!(plain().render(&messages).unwrap().text.ends_with("\nAssistant:"));
        }
    }
}
