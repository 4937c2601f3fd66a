//! Rendering: turns an event into the frame that a socket gets.
//!
//! The frame holds the event's body, the whole event or one field. An event is rendered once for each route, not once
//! for each socket. On a route with `resume` it also tells the place of the event in the history of its group.

use glob::Pattern;

use crate::close_code::CloseFrame;
use crate::config::{Deliver, Fault, Faults};
use crate::event::{Event, NotRenderable, Value};
use crate::frame::{Accounting, Frame, Opcode};
use crate::heavy::heavy;
use crate::ids::GroupName;
use crate::position::Position;

/// The key under which a client finds the position of an event, and the type of the frames that tell one.
const POSITION: &str = "lockgate.position";

/// The effect of an event on a socket.
#[derive(Debug)]
pub enum Rendered {
    /// The socket gets this frame.
    Frame(Frame),
    /// The socket gets this frame, which cannot hold a position, and the position behind it.
    Followed(Frame, Frame),
    /// The socket closes (`websocket.close`).
    Close(CloseFrame),
    /// The route does not deliver this type.
    Filtered,
}

/// The rules by which one route turns events into frames.
#[derive(Debug)]
pub struct Delivery {
    deliver: Deliver,
    /// The event types that the route delivers; empty means all.
    types: Vec<Pattern>,
    /// True if clients are told positions.
    resume: bool,
}

/// The place of an event in the history of its group.
#[derive(Clone, Copy, Debug)]
pub struct EventPlace<'a> {
    /// The group.
    pub group: &'a GroupName,
    /// The position of the event.
    pub at: &'a Position,
}

impl EventPlace<'_> {
    /// Appends the position as a JSON string.
    fn write(&self, out: &mut String) {
        // A text always has a JSON form.
        let text = Value::from(self.at.text(self.group));
        text.write_json(out).ok();
    }

    /// Returns the frame that tells a client this position; `recovered` answers a client that came back.
    pub fn notice(&self, recovered: Option<bool>, accounting: Accounting) -> Frame {
        let mut json = format!("{{\"type\":\"{POSITION}\",\"position\":");
        self.write(&mut json);
        match recovered {
            Some(recovered) => json.push_str(&format!(",\"recovered\":{recovered}}}")),
            None => json.push('}'),
        }
        text(&json, &accounting)
    }

    /// Puts the position into a JSON object, as its last key.
    fn put_into(&self, object: &mut String) {
        object.truncate(object.trim_end().len() - 1);
        if !object.trim_end().ends_with('{') {
            object.push(',');
        }
        object.push_str(&format!("\"{POSITION}\":"));
        self.write(object);
        object.push('}');
    }
}

/// Returns the frame that tells a client that events of a group are missing.
pub fn gap_notice(group: &GroupName, accounting: Accounting) -> Frame {
    let mut json = String::from("{\"type\":\"lockgate.gap\",\"group\":");
    Value::from(group.as_str()).write_json(&mut json).ok();
    json.push('}');
    text(&json, &accounting)
}

impl Rendered {
    /// Returns the bytes of its frames.
    pub fn size(&self) -> usize {
        match self {
            Rendered::Frame(frame) => frame.len(),
            Rendered::Followed(frame, position) => frame.len() + position.len(),
            Rendered::Close(_) | Rendered::Filtered => 0,
        }
    }
}

impl Delivery {
    /// Makes the delivery of a route with `deliver` and `events`.
    ///
    /// # Errors
    /// Every mistake in them, each at its key of the route.
    pub fn new(deliver: Deliver, events: &[String]) -> Result<Self, Faults> {
        let types = events.iter().enumerate().map(|(index, glob)| {
            Pattern::new(glob).map_err(|error| {
                let key = format!("events[{index}]");
                let expected = "a shell glob such as \"chat.*\"";
                Fault::new(key, format!("{glob:?}"), expected).advice(error.msg)
            })
        });
        let mut faults = Vec::new();
        if deliver == Deliver::Field("type".to_owned()) {
            let expected = "a field of the event's body";
            faults.push(Fault::new("deliver", "the type itself", expected));
        }
        match Faults::collect(types) {
            Ok(types) => {
                let resume = false;
                Faults::or(
                    faults,
                    Self {
                        deliver,
                        types,
                        resume,
                    },
                )
            }
            Err(Faults(more)) => Err(Faults([faults, more].concat())),
        }
    }

    /// Tells clients positions, if `resume` is true.
    pub fn with_resume(self, resume: bool) -> Self {
        Self { resume, ..self }
    }

    /// Returns true if clients are told positions.
    pub fn resumes(&self) -> bool {
        self.resume
    }

    /// Returns true if the route delivers events of this type.
    pub fn takes(&self, event_type: &str) -> bool {
        self.types.is_empty() || self.types.iter().any(|glob| glob.matches(event_type))
    }

    /// Renders `event`. The types `websocket.send` and `websocket.close` act as the ASGI messages of these names on
    /// every route, whatever its `deliver` and `events` say. `place` is told on a route with `resume` only.
    ///
    /// # Errors
    /// [`RenderError`] if JSON cannot express a value of the event, if the event lacks the field, or if it is a
    /// `websocket.send` without `text` and `bytes`.
    pub fn render(
        &self,
        event: &Event,
        place: Option<EventPlace<'_>>,
        accounting: &Accounting,
    ) -> Result<Rendered, RenderError> {
        let event_type = event.event_type().unwrap_or_default();
        match event_type {
            "websocket.send" if self.resume => return sent_from(event, place, accounting),
            "websocket.send" => return send_event(event, accounting).map(Rendered::Frame),
            "websocket.close" => return Ok(Rendered::Close(close_frame(event))),
            _ if !self.takes(event_type) => return Ok(Rendered::Filtered),
            _ => {}
        }
        heavy(event.is_heavy(), || self.written(event, place, accounting))
    }

    fn written(
        &self,
        event: &Event,
        place: Option<EventPlace<'_>>,
        accounting: &Accounting,
    ) -> Result<Rendered, RenderError> {
        let own;
        let event = match self.resume && event.get(POSITION).is_some() {
            true => {
                own = without_position(event);
                &own
            }
            false => event,
        };
        let mut json = String::new();
        match &self.deliver {
            Deliver::Body => event.write_json(&mut json, true)?,
            Deliver::Event => event.write_json(&mut json, false)?,
            Deliver::Field(name) => match event.get(name) {
                Some(Value::Str(field)) => return Ok(Rendered::Frame(text(field, accounting))),
                Some(value) => value.write_json(&mut json)?,
                None => return Err(RenderError::NoField(name.as_str().into())),
            },
        }
        if let Some(place) = place.filter(|_| self.resume) {
            place.put_into(&mut json);
        }
        Ok(Rendered::Frame(text(&json, accounting)))
    }
}

/// Returns the event without a position of the application's own: a client could not tell it from ours.
fn without_position(event: &Event) -> Event {
    let mut event = event.clone();
    event.remove(POSITION);
    event
}

/// Renders a `websocket.send` with its place: in its text if that is a JSON object, else in a frame behind it.
fn sent_from(
    event: &Event,
    place: Option<EventPlace<'_>>,
    accounting: &Accounting,
) -> Result<Rendered, RenderError> {
    let sent = send_event(event, accounting)?;
    if let Some(Value::Str(object)) = event.get("text")
        && let Ok(parsed) = Event::from_json(object.as_bytes())
    {
        let mut json = object.to_string();
        if parsed.get(POSITION).is_some() {
            json.clear();
            without_position(&parsed).write_json(&mut json, false)?;
        }
        if let Some(place) = place {
            place.put_into(&mut json);
        }
        return Ok(Rendered::Frame(text(&json, accounting)));
    }
    Ok(match place {
        Some(place) => Rendered::Followed(sent, place.notice(None, accounting.clone())),
        None => Rendered::Frame(sent),
    })
}

/// A reason for which an event does not become a frame.
#[derive(Debug, thiserror::Error)]
pub enum RenderError {
    /// The event holds a value that JSON cannot express.
    #[error(transparent)]
    NotRenderable(#[from] NotRenderable),
    /// The event lacks the field that the route delivers.
    #[error("it has no field {0:?}")]
    NoField(Box<str>),
    /// A `websocket.send` holds nothing to send.
    #[error("it has neither `text` nor `bytes`")]
    NothingToSend,
}

fn text(text: &str, accounting: &Accounting) -> Frame {
    Frame::encode(Opcode::Text, text.as_bytes(), accounting.clone())
}

/// Renders a `websocket.send` by the rules of ASGI: `text`, else `bytes`. A key that is None counts as absent.
fn send_event(event: &Event, accounting: &Accounting) -> Result<Frame, RenderError> {
    match (event.get("text"), event.get("bytes")) {
        (Some(Value::Str(text)), _) => Ok(self::text(text, accounting)),
        (None | Some(Value::Nil), Some(Value::Bin(bytes))) => {
            Ok(Frame::encode(Opcode::Binary, bytes, accounting.clone()))
        }
        _ => Err(RenderError::NothingToSend),
    }
}

/// Returns the frame of a `websocket.close` by the rules of ASGI: `code` (1000 if absent) and `reason`.
pub fn close_frame(event: &Event) -> CloseFrame {
    let reason = match event.get("reason") {
        Some(Value::Str(reason)) => reason,
        _ => "",
    };
    let code = match event.get("code") {
        None | Some(Value::Nil) => None,
        Some(Value::Int(code)) => Some(*code),
        Some(Value::UInt(code)) => Some(i64::try_from(*code).unwrap_or(0)),
        // Channels reads `close=True` as "the default code".
        Some(Value::Bool(true)) => None,
        // 0 is no code that an application may send, so `from_application` turns it into 1011.
        Some(_) => Some(0),
    };
    CloseFrame::from_application(code, reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered(event: &str, resume: bool, placed: bool) -> Vec<String> {
        let delivery = Delivery::new(Deliver::Body, &[]).unwrap();
        let delivery = delivery.with_resume(resume);
        let (epoch, group) = (crate::position::Epoch::parse("e1").unwrap(), "g\"~".into());
        let at = Position { epoch, offset: 7 };
        let place = EventPlace {
            group: &group,
            at: &at,
        };
        let event = Event::from_json(event).unwrap();
        let place = placed.then_some(place);
        let frames = match delivery.render(&event, place, &Accounting::default()) {
            Ok(Rendered::Frame(frame)) => vec![frame],
            Ok(Rendered::Followed(frame, position)) => vec![frame, position],
            other => panic!("{other:?}"),
        };
        let text = |frame: &Frame| String::from_utf8_lossy(&frame.as_bytes()[2..]).into_owned();
        frames.iter().map(text).collect()
    }

    #[test]
    fn a_route_without_resume_renders_as_if_there_were_no_place() {
        for event in [
            r#"{"type":"t","a":{"b":1},"lockgate.position":"mine"}"#,
            r#"{"type":"websocket.send","text":"{\"a\":1}"}"#,
        ] {
            let frames = rendered(event, false, false);
            assert_eq!(rendered(event, false, true), frames);
        }
    }

    #[test]
    fn the_position_is_the_last_key_and_no_application_forges_it() {
        const PLACE: &str = r#""lockgate.position":"g\"~~e1~7"}"#;
        for (event, before) in [
            (r#"{"type":"t","a":{"b":{}}}"#, r#"{"a":{"b":{}},"#),
            (r#"{"type":"t"}"#, "{"),
            (
                r#"{"lockgate.position":"x","type":"t","a":1}"#,
                r#"{"a":1,"#,
            ),
            (
                r#"{"type":"websocket.send","text":" {\"a\" : {}} \n"}"#,
                r#" {"a" : {},"#,
            ),
            (r#"{"type":"websocket.send","text":"{ }"}"#, "{ "),
            (
                r#"{"type":"websocket.send","text":"{\"lockgate.position\":1,\"a\":2}"}"#,
                r#"{"a":2,"#,
            ),
        ] {
            assert_eq!(rendered(event, true, true), [format!("{before}{PLACE}")]);
            let without: Vec<_> = rendered(event, true, false);
            assert!(!without[0].contains("lockgate.position"), "{without:?}");
        }
    }

    #[test]
    fn what_cannot_hold_a_position_is_followed_by_it() {
        for text in ["plain", "[1]", "{\"a\":1} x", "1"] {
            let mut event = Event::new("websocket.send", [("text", text.into())]);
            event.set("bytes", Value::Nil);
            let mut json = String::new();
            event.write_json(&mut json, false).unwrap();
            let position = r#"{"type":"lockgate.position","position":"g\"~~e1~7"}"#;
            assert_eq!(rendered(&json, true, true), [text, position]);
            assert_eq!(rendered(&json, true, false), [text]);
        }
    }
}
