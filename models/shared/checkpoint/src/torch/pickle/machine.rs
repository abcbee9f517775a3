//! The machine: opcodes to values.

use std::collections::HashMap;
use std::io::{BufRead, Read};

use super::construct::{self, Made};
use super::values::{Id, Node, Pickle};
use crate::input::{Parsed, malformed, refused};

/// More bytes of pickle, not counting tensors, are no checkpoint.
pub(crate) const LARGEST: u64 = 1 << 28;

/// Bytes of an integer, one more than may be.
const LONGEST_INTEGER: u64 = (1 << 16) + 1;

impl Pickle {
    /// Reads one pickle from a stream of at most `remaining` bytes, and returns its value.
    pub(crate) fn read(&mut self, from: &mut dyn BufRead, remaining: u64) -> Parsed<Id> {
        let remaining = remaining.min(LARGEST);
        let machine = Machine { values: self, from, remaining, stack: vec![], marks: vec![], memo: HashMap::new() };
        let value = machine.run();
        // What it would run matters more than what else is wrong with it.
        if value.is_err() && !self.called.is_empty() { construct::not_listed(&self.called) } else { value }
    }
}

struct Machine<'a> {
    values: &'a mut Pickle,
    from: &'a mut dyn BufRead,
    remaining: u64,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

impl Machine<'_> {
    fn run(mut self) -> Parsed<Id> {
        loop {
            let [op] = self.array::<1>()?;
            // A value on the stack, a mark, and the step itself.
            self.values.budget.spend(8)?;
            if op == b'.' {
                return match (self.pop()?, self.stack.is_empty() && self.marks.is_empty()) {
                    (value, true) => Ok(value),
                    _ => malformed("its pickle stops with values left over"),
                };
            }
            self.step(op)?;
        }
    }

    fn step(&mut self, op: u8) -> Parsed<()> {
        let node = match op {
            0x80 | 0x95 | b'(' | b'0' | b'1' | b'2' => return self.control(op),
            b'a' | b'e' | b's' | b'u' | 0x90 => return self.fill(op),
            b'q' | b'r' | b'p' | 0x94 => return self.remember(op),
            b'h' | b'j' | b'g' => return self.recall(op),
            b'R' | 0x81 | 0x92 | b'b' | b'o' | b'i' => return self.construct(op),
            b'P' => return refused("its pickle refers to something outside by a text: PyTorch writes no such thing"),
            0x82..=0x84 => return refused("its pickle refers to Python's extension registry: nothing was executed"),
            0x97 | 0x98 => return refused("its pickle refers to buffers outside the file"),
            b']' | b'}' | b')' | 0x8f | 0x85..=0x87 | b't' | b'l' | 0x91 | b'd' => self.container(op)?,
            b'c' | 0x93 | b'Q' => self.reference(op)?,
            _ => self.scalar(op)?,
        };
        let id = self.values.add(node)?;
        self.push(id)
    }

    /// Opcodes that move values and marks, or say how the pickle was written.
    fn control(&mut self, op: u8) -> Parsed<()> {
        match op {
            0x80 => match self.array()? {
                [..=5] => Ok(()),
                [version] => refused(format!("its pickle has protocol {version}, known are 0 to 5")),
            },
            0x95 => {
                let len = u64::from_le_bytes(self.array()?);
                match self.remaining.checked_sub(len) {
                    Some(_) => Ok(()),
                    None => malformed("a frame of its pickle is longer than the pickle"),
                }
            }
            b'(' => {
                self.marks.push(self.stack.len());
                Ok(())
            }
            b'0' => self.pop().map(|_| ()),
            b'1' => self.since_mark().map(|_| ()),
            _ => {
                let top = self.pop()?;
                self.push(top)?;
                self.push(top)
            }
        }
    }

    /// Numbers, texts and bytes.
    fn scalar(&mut self, op: u8) -> Parsed<Node> {
        Ok(match op {
            b'N' => Node::None,
            0x88 => Node::Bool(true),
            0x89 => Node::Bool(false),
            b'I' => {
                let line = self.line()?;
                match line.as_str() {
                    "00" => Node::Bool(false),
                    "01" => Node::Bool(true),
                    _ => self.decimal(&line)?,
                }
            }
            b'L' => {
                let line = self.line()?;
                self.decimal(line.trim_end_matches('L'))?
            }
            b'J' => Node::Int(i32::from_le_bytes(self.array()?).into()),
            b'K' => Node::Int(self.array::<1>()?[0].into()),
            b'M' => Node::Int(u16::from_le_bytes(self.array()?).into()),
            0x8a => {
                let n = self.array::<1>()?[0].into();
                integer(&self.bytes(n)?)
            }
            0x8b => match u64::try_from(i32::from_le_bytes(self.array()?)) {
                Ok(n @ ..LONGEST_INTEGER) => integer(&self.bytes(n)?),
                Ok(n) => return malformed(format!("an integer of its pickle has {n} bytes")),
                Err(_) => return malformed("an integer of its pickle has a negative length"),
            },
            b'F' => match self.line()?.parse() {
                Ok(value) => Node::Float(value),
                Err(_) => return malformed("a number of its pickle is none"),
            },
            b'G' => Node::Float(f64::from_be_bytes(self.array()?)),
            b'S' => {
                let line = self.line()?;
                let quoted = line.trim();
                let inner = ['\'', '"'].iter().find_map(|q| quoted.strip_prefix(*q)?.strip_suffix(*q));
                match inner {
                    Some(text) if !text.contains('\\') => Node::Text(text.into()),
                    _ => return malformed("a string of its pickle is not quoted plainly"),
                }
            }
            b'V' => Node::Text(raw_unicode(&self.raw_line()?)?),
            b'U' | 0x8c | b'C' => {
                let n = self.array::<1>()?[0].into();
                self.string(op, n)?
            }
            b'T' | b'X' | b'B' => {
                let n = u32::from_le_bytes(self.array()?).into();
                self.string(op, n)?
            }
            0x8d | 0x8e | 0x96 => {
                let n = u64::from_le_bytes(self.array()?);
                self.string(op, n)?
            }
            _ => return malformed(format!("its pickle has opcode {op:#04x}, which does not exist")),
        })
    }

    /// Lists, dictionaries, tuples and sets.
    fn container(&mut self, op: u8) -> Parsed<Node> {
        Ok(match op {
            b']' => Node::List(vec![]),
            b'}' => Node::Dict { items: vec![], attributes: None },
            b')' => Node::Tuple(vec![]),
            0x8f => Node::Set(vec![]),
            b't' => Node::Tuple(self.since_mark()?),
            b'l' => Node::List(self.since_mark()?),
            0x91 => Node::Set(self.since_mark()?),
            b'd' => Node::Dict { items: pairs(self.since_mark()?)?, attributes: None },
            _ => {
                let mut items = vec![];
                for _ in 0x84..op {
                    items.insert(0, self.pop()?);
                }
                Node::Tuple(items)
            }
        })
    }

    /// Names of classes, and storages outside the pickle.
    fn reference(&mut self, op: u8) -> Parsed<Node> {
        Ok(match op {
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.values.global(format!("{module}.{name}"))?
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                match (self.values.text(module), self.values.text(name)) {
                    (Some(module), Some(name)) => {
                        self.values.budget.spend(module.len() + name.len())?;
                        let name = format!("{module}.{name}");
                        self.values.global(name)?
                    }
                    _ => return malformed("its pickle names a class by something that is no text"),
                }
            }
            _ => {
                let id = self.pop()?;
                Node::Storage(construct::storage(self.values, id)?)
            }
        })
    }

    /// Calls, as data: what a listed class or function would give.
    fn construct(&mut self, op: u8) -> Parsed<()> {
        let (callable, arguments) = match op {
            b'b' => {
                let (state, object) = (self.pop()?, self.top()?);
                return construct::build(self.values, object, state);
            }
            b'o' => {
                let items = self.since_mark()?;
                let name = items.first().map_or("nothing".into(), |i| self.values.name(*i));
                let object = construct::object(self.values, &name)?;
                let id = self.values.add(object)?;
                return self.push(id);
            }
            b'i' => {
                self.since_mark()?;
                let (module, name) = (self.line()?, self.line()?);
                let Node::Global(name) = self.values.global(format!("{module}.{name}"))? else { return Ok(()) };
                let object = construct::object(self.values, &name)?;
                let id = self.values.add(object)?;
                return self.push(id);
            }
            0x92 => {
                let (keywords, arguments, callable) = (self.pop()?, self.pop()?, self.pop()?);
                if !matches!(&self.values[keywords], Node::Dict { items, .. } if items.is_empty()) {
                    let name = self.values.name(callable);
                    return refused(format!("its pickle makes {name} with keywords: nothing was executed"));
                }
                (callable, arguments)
            }
            _ => {
                let (arguments, callable) = (self.pop()?, self.pop()?);
                (callable, arguments)
            }
        };
        let value = match construct::call(self.values, callable, arguments, op != b'R')? {
            Made::Value(node) => self.values.add(node)?,
            Made::Argument(id) => id,
        };
        self.push(value)
    }

    fn remember(&mut self, op: u8) -> Parsed<()> {
        let key = match op {
            b'q' => self.array::<1>()?[0].into(),
            b'r' => u32::from_le_bytes(self.array()?),
            b'p' => self.number()?,
            _ => self.memo.len() as u32,
        };
        let there = |stack: &[Id], marks: &[usize]| marks.last().is_none_or(|m| *m < stack.len());
        match self.stack.last().copied().filter(|_| there(&self.stack, &self.marks)) {
            Some(top) => {
                // A third of a table's room is free.
                self.values.budget.spend(16)?;
                self.memo.insert(key, top);
                Ok(())
            }
            None => malformed("its pickle remembers a value that is not there"),
        }
    }

    fn recall(&mut self, op: u8) -> Parsed<()> {
        let key = match op {
            b'h' => self.array::<1>()?[0].into(),
            b'j' => u32::from_le_bytes(self.array()?),
            _ => self.number()?,
        };
        match self.memo.get(&key) {
            Some(value) => self.push(*value),
            None => malformed(format!("its pickle asks for value {key}, which it did not remember")),
        }
    }

    fn push(&mut self, id: Id) -> Parsed<()> {
        self.stack.push(id);
        Ok(())
    }

    fn array<const N: usize>(&mut self) -> Parsed<[u8; N]> {
        let mut bytes = [0; N];
        self.take(N as u64)?;
        self.from.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Counts bytes before they are read: no length is believed that reaches beyond the end.
    fn take(&mut self, n: u64) -> Parsed<()> {
        match self.remaining.checked_sub(n) {
            Some(left) => {
                self.remaining = left;
                Ok(())
            }
            None => malformed("its pickle ends too early, or has more than 256 MiB"),
        }
    }

    fn bytes(&mut self, n: u64) -> Parsed<Vec<u8>> {
        self.take(n)?;
        self.values.budget.spend(n as usize)?;
        let mut bytes = vec![];
        if (&mut *self.from).take(n).read_to_end(&mut bytes)? as u64 != n {
            return malformed("its pickle ends too early");
        }
        Ok(bytes)
    }

    fn string(&mut self, op: u8, n: u64) -> Parsed<Node> {
        let bytes = self.bytes(n)?;
        match op {
            b'B' | b'C' | 0x8e | 0x96 => Ok(Node::Bytes(bytes)),
            // Strings of Python 2 have no encoding; bytes that are no text are kept as such.
            b'T' | b'U' => Ok(String::from_utf8(bytes).map_or_else(|e| Node::Bytes(e.into_bytes()), Node::Text)),
            _ => Ok(Node::Text(String::from_utf8(bytes).or_else(|e| with_surrogates(e.as_bytes()))?)),
        }
    }

    fn line(&mut self) -> Parsed<String> {
        let bytes = self.raw_line()?;
        String::from_utf8(bytes).or_else(|_| malformed("a line of its pickle is no text"))
    }

    fn raw_line(&mut self) -> Parsed<Vec<u8>> {
        let mut bytes = vec![];
        let limit = self.remaining.min(1 << 16);
        (&mut *self.from).take(limit).read_until(b'\n', &mut bytes)?;
        self.take(bytes.len() as u64)?;
        if bytes.pop() != Some(b'\n') {
            return malformed("a line of its pickle has no end");
        }
        self.values.budget.spend(bytes.len())?;
        Ok(bytes)
    }

    fn number(&mut self) -> Parsed<u32> {
        self.line()?.parse().or_else(|_| malformed("a number of its pickle is none"))
    }

    fn decimal(&mut self, digits: &str) -> Parsed<Node> {
        let digits = digits.trim();
        // Python takes 010 for a number of base 8.
        if digits.trim_start_matches('-').len() > 1 && digits.trim_start_matches('-').starts_with('0') {
            return malformed("an integer of its pickle begins with a zero");
        }
        digits
            .parse()
            .map(Node::Int)
            .or_else(|_| malformed("an integer of its pickle is none, or has more than 64 bits"))
    }

    fn pop(&mut self) -> Parsed<Id> {
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() <= floor {
            return malformed("its pickle takes a value that is not there");
        }
        self.stack.pop().map_or_else(|| malformed("its pickle takes a value that is not there"), Ok)
    }

    fn top(&mut self) -> Parsed<Id> {
        let value = self.pop()?;
        self.stack.push(value);
        Ok(value)
    }

    fn since_mark(&mut self) -> Parsed<Vec<Id>> {
        match self.marks.pop() {
            Some(at) => {
                self.values.budget.spend(8 * (self.stack.len() - at))?;
                Ok(self.stack.split_off(at))
            }
            None => malformed("its pickle goes back to a mark that is not there"),
        }
    }

    /// Puts values into the list, set or dictionary below them.
    fn fill(&mut self, op: u8) -> Parsed<()> {
        let mut values = match op {
            b'a' => vec![self.pop()?],
            b's' => {
                let value = self.pop()?;
                vec![self.pop()?, value]
            }
            _ => self.since_mark()?,
        };
        let target = self.top()?;
        match (&mut self.values.nodes[target as usize], op) {
            (Node::List(items), b'a' | b'e') | (Node::Set(items), 0x90) => items.append(&mut values),
            (Node::Dict { items, .. }, b's' | b'u') => items.append(&mut pairs(values)?),
            // It was never made, and keeps nothing.
            (Node::Object { .. }, _) => {}
            _ => return malformed("its pickle puts values into something that is no list, set or dictionary"),
        }
        Ok(())
    }
}

fn pairs(values: Vec<Id>) -> Parsed<Vec<(Id, Id)>> {
    match values.len() % 2 {
        0 => Ok(values.chunks_exact(2).map(|p| (p[0], p[1])).collect()),
        _ => malformed("its pickle has a dictionary with a key without a value"),
    }
}

/// Text in which Python wrote half of a pair of surrogates, which no text has: a mark stands for it.
fn with_surrogates(bytes: &[u8]) -> Parsed<String> {
    let mut text = String::new();
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        // Python's three bytes are three errors here, of which the first begins the half.
        match chunk.invalid() {
            [] => {}
            [0xed] => text.push(char::REPLACEMENT_CHARACTER),
            [0xa0..=0xbf] | [0x80..=0xbf] if text.ends_with(char::REPLACEMENT_CHARACTER) => {}
            _ => return malformed("a text of its pickle is no UTF-8"),
        }
    }
    Ok(text)
}

/// Python's encoding raw-unicode-escape: a byte a character, and `\uXXXX` or `\UXXXXXXXX` behind an odd number of backslashes.
fn raw_unicode(bytes: &[u8]) -> Parsed<String> {
    let mut text = String::new();
    let (mut at, mut backslashes) = (0, 0);
    while at < bytes.len() {
        let digits = match bytes[at] {
            b'u' if backslashes % 2 == 1 => 4,
            b'U' if backslashes % 2 == 1 => 8,
            _ => 0,
        };
        backslashes = if bytes[at] == b'\\' { backslashes + 1 } else { 0 };
        if digits == 0 {
            text.push(bytes[at].into());
            at += 1;
            continue;
        }
        // The backslash is part of what the character was written by.
        text.pop();
        let hex = bytes.get(at + 1..at + 1 + digits).and_then(|h| std::str::from_utf8(h).ok());
        let hex = hex.filter(|h| h.bytes().all(|b| b.is_ascii_hexdigit()));
        match hex.and_then(|h| u32::from_str_radix(h, 16).ok()).and_then(char::from_u32) {
            Some(c) => text.push(c),
            None => return malformed("a text of its pickle has an escape that is no character"),
        }
        at += 1 + digits;
    }
    Ok(text)
}

/// Little-endian two's complement.
fn integer(bytes: &[u8]) -> Node {
    let negative = bytes.last().is_some_and(|b| *b >= 128);
    // Bytes that only repeat the sign say nothing.
    let mut bytes = bytes;
    while bytes.len() > 8
        && bytes[bytes.len() - 1] == if negative { 255 } else { 0 }
        && (bytes[bytes.len() - 2] >= 128) == negative
    {
        bytes = &bytes[..bytes.len() - 1];
    }
    if bytes.len() <= 8 {
        let mut all = [if negative { 255 } else { 0 }; 8];
        all[..bytes.len()].copy_from_slice(bytes);
        return Node::Int(i64::from_le_bytes(all));
    }
    // The amount: two's complement is one more than the inverse.
    let mut amount = bytes.to_vec();
    if negative {
        let mut carry = true;
        for b in &mut amount {
            (*b, carry) = (!*b).overflowing_add(u8::from(carry));
        }
    }
    let digits: String = amount.iter().rev().map(|b| format!("{b:02x}")).collect();
    Node::Big(format!("{}0x{}", if negative { "-" } else { "" }, digits.trim_start_matches('0')))
}
