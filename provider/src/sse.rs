//! Server-sent events, as they come in pieces: <https://html.spec.whatwg.org/multipage/server-sent-events.html>.

/// An upstream's events are tokens; one that is longer is none.
const EVENT_BYTES_MAX: usize = 1 << 20;

/// One event.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Event {
    /// Empty where it says nothing.
    pub(crate) name: String,
    pub(crate) data: String,
}

/// The stream is none, or an event in it is too long.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("its stream has an event of more than {EVENT_BYTES_MAX} bytes")]
pub(crate) struct TooLong;

/// Reads events out of bytes.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    /// A line that is not complete.
    line: Vec<u8>,
    event: Event,
    has_data: bool,
    /// The last byte was a carriage return: a line feed behind it ends no further line.
    returned: bool,
}

impl Reader {
    /// Reads more of the stream: the events that are complete with it.
    pub(crate) fn read(&mut self, bytes: &[u8]) -> Result<Vec<Event>, TooLong> {
        let mut events = Vec::new();
        let mut rest = bytes;
        while let Some(&first) = rest.first() {
            if std::mem::take(&mut self.returned) && first == b'\n' {
                rest = &rest[1..];
                continue;
            }
            let end = rest.iter().position(|byte| matches!(byte, b'\n' | b'\r'));
            let (part, behind) = rest.split_at(end.unwrap_or(rest.len()));
            self.line.extend_from_slice(part);
            if self.line.len() + self.event.data.len() > EVENT_BYTES_MAX {
                return Err(TooLong);
            }
            let Some((ending, behind)) = behind.split_first() else { break };
            self.returned = *ending == b'\r';
            events.extend(self.end_line());
            rest = behind;
        }
        Ok(events)
    }

    fn end_line(&mut self) -> Option<Event> {
        let line = std::mem::take(&mut self.line);
        let line = String::from_utf8_lossy(&line);
        if line.is_empty() {
            let event = std::mem::take(&mut self.event);
            return std::mem::take(&mut self.has_data).then_some(event);
        }
        let (field, value) = line.split_once(':').unwrap_or((&line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.event.name),
            "data" => {
                if std::mem::replace(&mut self.has_data, true) {
                    self.event.data.push('\n');
                }
                self.event.data.push_str(value);
            }
            // Comments, ids, retry times.
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn event(name: &str, data: &str) -> Event {
        Event { name: name.into(), data: data.into() }
    }

    #[test]
    fn events_have_names_data_and_comments() {
        let text = ": hello\n\ndata: {\"a\":1}\n\nevent: end\r\ndata:x\r\ndata: y\r\n\r\nid: 7\n\ndata\n\ndata: cut";
        let events = Reader::default().read(text.as_bytes()).unwrap();
        assert_eq!(events, [event("", "{\"a\":1}"), event("end", "x\ny"), event("", "")]);
    }

    #[test]
    fn what_never_ends_is_given_up() {
        let mut reader = Reader::default();
        let bytes = vec![b'x'; EVENT_BYTES_MAX];
        assert_eq!(reader.read(&bytes), Ok(Vec::new()));
        assert_eq!(reader.read(b"x"), Err(TooLong));
        let mut reader = Reader::default();
        let lines = b"data: x\n".repeat(EVENT_BYTES_MAX);
        assert_eq!(reader.read(&lines), Err(TooLong));
    }

    proptest! {
        #[test]
        fn how_it_comes_in_pieces_changes_nothing(
            text in "(data: ?[a-zé夢]{0,4}|event: x|:|\r\n|\n|\r){0,30}",
            cuts in proptest::collection::vec(1_usize..6, 0..40),
        ) {
            let whole = Reader::default().read(text.as_bytes()).unwrap();
            let (mut reader, mut rest, mut events) = (Reader::default(), text.as_bytes(), Vec::new());
            for cut in cuts {
                let (part, behind) = rest.split_at(cut.min(rest.len()));
                events.extend(reader.read(part).unwrap());
                rest = behind;
            }
            events.extend(reader.read(rest).unwrap());
            prop_assert_eq!(events, whole);
        }
    }
}
