//! Any bytes as the body of a request.
#![no_main]

libfuzzer_sys::fuzz_target!(|body: &[u8]| banyan_api::fuzzed::request(body));
