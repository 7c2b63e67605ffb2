//! Any text as a member's name and as a join token.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Ok(identity) = text.parse::<banyan_proto::Identity>() {
        assert_eq!(identity.to_string(), text);
    }
    if let Ok(token) = text.parse::<banyan_ca::Token>() {
        assert_eq!(token.reveal().parse(), Ok(token));
    }
});
