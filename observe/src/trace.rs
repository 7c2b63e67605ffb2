//! Traces as OpenTelemetry has them: spans that are sent over OTLP, and the place in a trace that goes along with a query.
//!
//! A place travels as W3C's Trace Context has it, in HTTP's headers and in a query's, so that spans of all processes find their
//! parents. Without an exporter nothing is made, and the place is passed on as it came. Prompts and answers are never in a span.

use std::{borrow::Cow, fmt, sync::Arc};

use opentelemetry::{
    Context, KeyValue, Value,
    trace::{
        Span as _, SpanContext, SpanId, SpanKind, Status, TraceContextExt as _, TraceFlags, TraceId, TraceState, Tracer as _,
        TracerProvider as _,
    },
};
pub use opentelemetry_otlp::ExporterBuildError as TraceError;
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::{
    Resource,
    trace::{SdkTracer, SdkTracerProvider, Span as SdkSpan},
};

/// The first version of W3C's format, and the only one so far, has this length.
const TRACEPARENT_BYTES: usize = 55;
/// What W3C asks to be passed on at least.
const TRACESTATE_BYTES_MAX: usize = 512;

/// A span's place in a trace: what its children say is their parent.
#[derive(Clone, Debug, PartialEq)]
pub struct Place(SpanContext);

impl Place {
    /// Reads what W3C's headers say, also whether anybody wants to see the trace. Nothing when that is no place.
    pub fn read(traceparent: &str, tracestate: &str) -> Option<Place> {
        let hex = |text: &str| text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let mut parts = traceparent.split('-');
        let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let lengths = [version.len(), trace.len(), span.len(), flags.len()] == [2, 32, 16, 2];
        // Later versions may have more behind these.
        let whole = version != "00" || traceparent.len() == TRACEPARENT_BYTES;
        if !lengths || !whole || version == "ff" || ![version, trace, span, flags].into_iter().all(hex) {
            return None;
        }
        let flags = u8::from_str_radix(flags, 16).ok()? & TraceFlags::SAMPLED.to_u8();
        let state = match tracestate {
            "" => TraceState::default(),
            text if text.len() > TRACESTATE_BYTES_MAX => TraceState::default(),
            text => text.parse().unwrap_or_default(),
        };
        let (trace, span) = (TraceId::from_hex(trace).ok()?, SpanId::from_hex(span).ok()?);
        let place = SpanContext::new(trace, span, TraceFlags::new(flags), true, state);
        place.is_valid().then_some(Place(place))
    }

    /// As the header of that name has it.
    pub fn traceparent(&self) -> String {
        format!("00-{}-{}-{:02x}", self.0.trace_id(), self.0.span_id(), self.0.trace_flags())
    }

    /// As the header of that name has it; empty: it is left out.
    pub fn tracestate(&self) -> String {
        self.0.trace_state().header()
    }
}

/// Makes spans. Clones are the same one; by default it makes none.
#[derive(Clone, Default)]
pub struct Tracer(Option<Arc<Exporting>>);

struct Exporting {
    tracer: SdkTracer,
    provider: SdkTracerProvider,
}

/// Which side of a call a span is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// It serves one.
    Server,
    /// It makes one.
    Client,
    /// It is none.
    Within,
}

impl Tracer {
    /// Sends spans to an OTLP receiver over gRPC, at a URL such as `http://127.0.0.1:4317`. What else OpenTelemetry's environment
    /// variables say holds: `OTEL_TRACES_SAMPLER`, `OTEL_EXPORTER_OTLP_HEADERS`, `OTEL_RESOURCE_ATTRIBUTES` and the like.
    ///
    /// # Errors
    /// When the URL is none.
    pub fn to(url: &str, service: &str, instance: &str, version: &str) -> Result<Tracer, TraceError> {
        let exporter = SpanExporter::builder().with_tonic().with_endpoint(url).build()?;
        let mut resource = Resource::builder().with_attributes([
            KeyValue::new("service.instance.id", instance.to_owned()),
            KeyValue::new("service.version", version.to_owned()),
        ]);
        if std::env::var_os("OTEL_SERVICE_NAME").is_none() {
            resource = resource.with_service_name(service.to_owned());
        }
        let provider = SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource.build()).build();
        Ok(Tracer(Some(Arc::new(Exporting { tracer: provider.tracer("banyan"), provider }))))
    }

    /// Begins a span below a place, or a trace where there is none. Nothing when nobody wants to see it: the sampler says so, and it goes by
    /// what the place says unless told otherwise.
    pub fn begin(&self, name: impl Into<Cow<'static, str>>, side: Side, below: Option<&Place>) -> Option<Span> {
        let tracer = &self.0.as_ref()?.tracer;
        let context = below.map_or_else(Context::new, |place| Context::new().with_remote_span_context(place.0.clone()));
        let kind = match side {
            Side::Server => SpanKind::Server,
            Side::Client => SpanKind::Client,
            Side::Within => SpanKind::Internal,
        };
        let span = tracer.span_builder(name).with_kind(kind).start_with_context(tracer, &context);
        span.is_recording().then(|| Span(Box::new(span)))
    }

    /// Begins a span below a place, where there is one: whatever is no part of a trace does not begin one.
    pub fn below(&self, name: impl Into<Cow<'static, str>>, side: Side, place: Option<&Place>) -> Option<Span> {
        self.begin(name, side, Some(place?))
    }

    /// Sends what was not sent yet, and nothing more. Waits for the receiver, so not on a thread that others need.
    pub fn end(&self) {
        if let Some(exporting) = &self.0
            && let Err(error) = exporting.provider.shutdown()
        {
            tracing::debug!(%error, "the last spans were not sent");
        }
    }
}

impl fmt::Debug for Tracer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Tracer").field(&self.0.is_some()).finish()
    }
}

/// Something that takes time. It ends when it is dropped.
#[derive(Debug)]
pub struct Span(Box<SdkSpan>);

impl Span {
    /// For its children.
    pub fn place(&self) -> Place {
        Place(self.0.span_context().clone())
    }

    /// Says something of it. Never a prompt, an answer or a key.
    pub fn set(&mut self, name: &'static str, value: impl Into<Value>) {
        self.0.set_attribute(KeyValue::new(name, value));
    }

    /// It has failed.
    pub fn fail(&mut self, why: impl Into<Cow<'static, str>>) {
        self.0.set_status(Status::error(why));
    }

    /// Something happened meanwhile.
    pub fn note(&mut self, what: &'static str) {
        self.0.add_event(what, Vec::new());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_place_is_written_as_it_was_read() {
        let place = Place::read(PARENT, "a=1,b=2").unwrap();
        assert_eq!((place.traceparent().as_str(), place.tracestate().as_str()), (PARENT, "a=1,b=2"));
        // Of flags that were invented later only the one that we know is passed on.
        let later = Place::read(&format!("{}03", &PARENT[..53]), "").unwrap();
        assert_eq!(later.traceparent(), PARENT);
        assert!(Place::read("01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more", "").is_some());
        // What nobody wants to see is passed on as that.
        let unseen = format!("{}00", &PARENT[..53]);
        assert_eq!(Place::read(&unseen, "").unwrap().traceparent(), unseen);
        // What is wrong beside it is left out.
        assert_eq!(Place::read(PARENT, "no state").unwrap().tracestate(), "");
        assert_eq!(Place::read(PARENT, &format!("a={}", "x".repeat(600))).unwrap().tracestate(), "");
    }

    #[test]
    fn what_is_no_place_is_none() {
        for text in [
            "",
            "00",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-+af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319-b7ad6b71692033311-01",
            "00-0af7651916cd43dd8448eb211c80319ü-b7ad6b7169203331-01",
        ] {
            assert_eq!(Place::read(text, ""), None, "{text}");
        }
    }

    #[test]
    fn without_an_exporter_there_are_no_spans() {
        let place = Place::read(PARENT, "").unwrap();
        assert!(Tracer::default().begin("one", Side::Server, Some(&place)).is_none());
    }
}
