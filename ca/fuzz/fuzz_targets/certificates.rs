//! Any bytes as a certificate: whom it names, if anybody.
#![no_main]

libfuzzer_sys::fuzz_target!(|der: &[u8]| {
    if let Ok(identity) = banyan_proto::Identity::of_certificate(der) {
        assert_eq!(identity.to_string().parse(), Ok(identity));
    }
});
