//! Sending as hosts that write by HTTP do: batches of lines, each answered before the next one of
//! its connection.
//!
//! A batch that is not answered 204 is sent again, as Telegraf does, unless the answer says that
//! this is of no use. Only lines of batches that were answered 204 count as sent; every other
//! answer is counted by its name. The same batches may go to a TCP listener, which answers nothing,
//! to compare the two.
//!
//! [`batch`](crate::batch) makes the requests, [`answers`](crate::answers) counts the answers.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::LocalSet;
use tokio::time::{sleep, sleep_until, timeout};

use crate::answers::{Answer, Answers, Told};
use crate::batch::{Batch, Form, Writer};
use crate::burst::source_of;
use crate::send::{Pace, Progress, Round};
use crate::workload::Shape;

/// How long to wait for an answer: longer than any writer does.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a writer waits before it sends a batch again.
const PAUSE: Duration = Duration::from_millis(100);
/// How far behind its plan the sending may fall before it ends.
const LATENESS: Duration = Duration::from_secs(2);
/// The longest answer that is read.
const ANSWER_BYTES: usize = 64 * 1024;

/// What to send.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where to.
    pub target: Target,
    /// How many hosts.
    pub hosts: u32,
    /// The number of the first of them.
    pub first_host: u32,
    /// What each of them has.
    pub shape: Shape,
    /// How the requests look.
    pub form: Form,
    /// How fast.
    pub pace: Pace,
    /// For how long.
    pub duration: Duration,
    /// Connections that the hosts share; none: each host has its own.
    pub connections: Option<u32>,
    /// So many batches are made before the time begins, and sent as fast as they are answered;
    /// none: each as it is due.
    pub prepared: Option<usize>,
}

/// Where to send; it may change meanwhile.
#[derive(Clone, Debug)]
pub struct Target(Arc<Mutex<SocketAddr>>);

impl Target {
    /// This address.
    pub fn new(address: SocketAddr) -> Self {
        Self(Arc::new(Mutex::new(address)))
    }

    /// From now on it is this one.
    pub fn set(&self, address: SocketAddr) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = address;
    }

    fn get(&self) -> SocketAddr {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sends on the calling thread until the time is over; returns what was answered. What is under way
/// then is ended: the last batches have their answers, too.
///
/// # Errors
/// What the system says if it gives no runtime.
pub fn send(plan: &Plan, progress: &Arc<Progress>) -> io::Result<Answers> {
    let connections = plan.connections.unwrap_or(plan.hosts).min(plan.hosts).max(1);
    let mut writers: Vec<Vec<Writer>> = (0..connections).map(|_| Vec::new()).collect();
    for place in 0..plan.hosts {
        let writer = Writer::new(plan.first_host + place, plan.shape);
        writers[place as usize % connections as usize].push(writer);
    }
    let prepared = plan.prepared.map(|count| prepare(plan, &mut writers, count));
    let shared = Rc::new(Shared {
        plan: plan.clone(),
        progress: Arc::clone(progress),
        told: RefCell::default(),
        prepared: prepared.map(RefCell::new),
        start: Instant::now(),
        last: Cell::new(Instant::now()),
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let tasks = LocalSet::new();
    for (number, writers) in (0..).zip(writers) {
        let connection = Connection {
            number,
            shared: Rc::clone(&shared),
            stream: None,
            answer: Vec::new(),
            batch: Batch::default(),
        };
        tasks.spawn_local(connection.run(writers));
    }
    runtime.block_on(tasks);
    let seconds = shared.last.get().duration_since(shared.start).as_secs_f64();
    Ok(shared.told.take().answers(seconds))
}

/// Batches of all hosts in turn, made by as many threads as there are processors.
fn prepare(plan: &Plan, writers: &mut [Vec<Writer>], count: usize) -> VecDeque<Batch> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut all: Vec<&mut Writer> = writers.iter_mut().flatten().collect();
    let (hosts, form) = (all.len(), &plan.form);
    let made = Mutex::new(VecDeque::with_capacity(count));
    let each = hosts.div_ceil(threads);
    std::thread::scope(|scope| {
        for (part, writers) in all.chunks_mut(each).enumerate() {
            let made = &made;
            scope.spawn(move || {
                let places = (0..count).filter(|number| (number % hosts) / each == part);
                for place in places {
                    let mut batch = Batch::default();
                    writers[place % hosts - part * each].write(form, &mut batch);
                    made.lock().unwrap_or_else(PoisonError::into_inner).push_back(batch);
                }
            });
        }
    });
    made.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// What all connections share.
struct Shared {
    plan: Plan,
    progress: Arc<Progress>,
    told: RefCell<Told>,
    prepared: Option<RefCell<VecDeque<Batch>>>,
    start: Instant,
    /// When the last batch was answered.
    last: Cell<Instant>,
}

impl Shared {
    /// Whether a batch that is due after this time is still to be sent.
    fn goes_on(&self, due: Duration) -> bool {
        let late = if self.plan.pace == Pace::Max { Duration::ZERO } else { LATENESS };
        due < self.plan.duration
            && self.start.elapsed() < self.plan.duration.saturating_add(late)
            && !self.progress.is_stopped()
    }
}

struct Connection {
    number: u32,
    shared: Rc<Shared>,
    stream: Option<TcpStream>,
    answer: Vec<u8>,
    batch: Batch,
}

impl Connection {
    async fn run(mut self, mut writers: Vec<Writer>) {
        let shared = Rc::clone(&self.shared);
        if let Some(prepared) = &shared.prepared {
            while shared.goes_on(Duration::ZERO) {
                let Some(batch) = prepared.borrow_mut().pop_front() else { return };
                self.batch = batch;
                self.deliver().await;
            }
            return;
        }
        let plan = &shared.plan;
        let lines = f64::from(plan.hosts) * f64::from(u32::try_from(plan.form.lines).unwrap_or(u32::MAX));
        let round = match plan.pace {
            Pace::Every(interval) => interval,
            Pace::Rate(rate) => Duration::from_secs_f64(lines / rate),
            Pace::Max => Duration::ZERO,
        };
        for turn in 0.. {
            for writer in &mut writers {
                let due = round * turn + round * (writer.number() - plan.first_host) / plan.hosts;
                if !shared.goes_on(due) {
                    return;
                }
                sleep_until((shared.start + due).into()).await;
                writer.write(&plan.form, &mut self.batch);
                self.deliver().await;
            }
        }
    }

    /// Sends the batch until it is taken or refused for good, or the time is long over.
    async fn deliver(&mut self) {
        loop {
            let begun = Instant::now();
            let answered = timeout(PATIENCE, self.attempt()).await;
            if self.is_settled(answered.ok(), begun.elapsed()) {
                return;
            }
            self.stream = None;
            sleep(PAUSE).await;
        }
    }

    /// Notes an answer, or that there was none; true if the batch is not to be sent again.
    fn is_settled(&self, answered: Option<io::Result<Answer>>, took: Duration) -> bool {
        let Shared { plan, progress, told, start, last, .. } = &*self.shared;
        let mut told = told.borrow_mut();
        match answered {
            Some(Ok(answer)) => {
                told.note(&answer, took);
                if answer.is_taken() {
                    let Batch { host, first, lines, time, .. } = self.batch;
                    progress.add(lines, 0, self.batch.request.len() as u64, 0);
                    progress.note_round(Round { host, first, lines, time });
                    last.set(Instant::now());
                    return true;
                }
                if answer.is_final() {
                    told.give_up(self.batch.lines);
                    return true;
                }
            }
            Some(Err(error)) => told.note_error(&error.kind().to_string()),
            None => told.note_error("no answer"),
        }
        progress.add(0, 0, 0, 1);
        let is_over = progress.is_stopped() || start.elapsed() > plan.duration.saturating_add(PATIENCE);
        if is_over {
            told.give_up(self.batch.lines);
        }
        is_over
    }

    /// Sends the batch, and reads the answer.
    async fn attempt(&mut self) -> io::Result<Answer> {
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => connect(self.shared.plan.target.get(), self.number).await?,
        };
        let sent = stream.write_all(&self.batch.request).await;
        if self.shared.plan.form.is_stream {
            sent?;
            self.stream = Some(stream);
            return Ok(Answer::none());
        }
        // An answer that came before the whole request says more than the error that the request
        // ended in.
        let answer = read_answer(&mut stream, &mut self.answer).await;
        let answer = match sent {
            Ok(()) => answer?,
            Err(error) => return answer.map_err(|_| error),
        };
        if !answer.closes && !self.shared.plan.form.is_one_shot {
            self.stream = Some(stream);
        }
        Ok(answer)
    }
}

pub(crate) async fn read_answer(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<Answer> {
    buffer.clear();
    loop {
        if let Some(answer) = Answer::read(buffer) {
            return Ok(answer);
        }
        if buffer.len() > ANSWER_BYTES {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "an answer too long"));
        }
        if stream.read_buf(buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// A connection of the host of this number.
pub(crate) async fn connect(target: SocketAddr, number: u32) -> io::Result<TcpStream> {
    let socket = if target.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if let Some(source) = source_of(number, target) {
        socket.bind(SocketAddr::from((source, 0)))?;
    }
    let stream = socket.connect(target).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use super::*;
    use crate::ledger::Ledger;
    use crate::sink::{Behaviour, Sink, Store};

    fn plan(target: SocketAddr, form: Form) -> Plan {
        Plan {
            target: Target::new(target),
            hosts: 3,
            first_host: 10,
            shape: Shape::default(),
            form,
            pace: Pace::Every(Duration::from_millis(50)),
            duration: Duration::from_millis(100),
            connections: None,
            prepared: None,
        }
    }

    fn send_to_a_sink(change: impl FnOnce(&mut Plan), behaviour: Behaviour) -> (Answers, u64, Arc<Store>) {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let store = Arc::new(Store::default());
        store.behave(behaviour);
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let sink = runtime.block_on(Sink::start(any, Arc::clone(&store))).expect("a sink");
        let form = Form { lines: 50, ..Form::default() };
        let mut plan = plan(sink.address(), form);
        change(&mut plan);
        let progress = Arc::new(Progress::default());
        let answers = send(&plan, &progress).expect("sent");
        (answers, progress.sent().lines, store)
    }

    #[test]
    fn every_form_of_a_batch_arrives_whole() {
        for (is_gzip, is_chunked, is_one_shot, connections, prepared) in [
            (false, false, false, None, None),
            (true, false, false, Some(2), None),
            (false, true, false, Some(1), None),
            (true, true, true, None, None),
            (true, false, false, Some(2), Some(6)),
        ] {
            let change = |plan: &mut Plan| {
                (plan.form.is_gzip, plan.form.is_chunked) = (is_gzip, is_chunked);
                (plan.form.is_one_shot, plan.connections, plan.prepared) = (is_one_shot, connections, prepared);
                if prepared.is_some() {
                    plan.duration = Duration::from_secs(60);
                }
            };
            let (answers, lines, store) = send_to_a_sink(change, Behaviour::Accept);
            let counts = store.ledger.counts();
            assert_eq!((lines, counts.distinct, counts.lines), (6 * 50, 6 * 50, 6 * 50), "{answers:?}");
            assert_eq!((answers.taken, answers.given_up_lines), (6, 0));
            assert!(answers.others.is_empty(), "{answers:?}");
        }
    }

    #[test]
    fn only_what_was_answered_204_counts_as_sent_and_other_answers_are_named() {
        let (answers, lines, store) = send_to_a_sink(|_| {}, Behaviour::Status(400));
        assert_eq!((lines, answers.taken, answers.given_up_lines, store.ledger.counts().lines), (0, 0, 6 * 50, 0));
        let (name, count) = answers.others.first_key_value().expect("a name");
        assert!(name.starts_with("400") && name.contains("told to"), "{name}");
        assert_eq!(*count, 6);
    }

    #[test]
    fn a_batch_is_sent_again_until_it_is_answered_for() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let target = listener.local_addr().expect("address");
        let server = std::thread::spawn(move || {
            let mut texts = Vec::new();
            for status in ["", "503 Service Unavailable", "204 No Content"] {
                let (mut stream, _) = listener.accept().expect("accept");
                let (mut text, mut buffer) = (Vec::new(), [0; 65_536]);
                while text.iter().filter(|byte| **byte == b'\n').count() < 37 + 6 {
                    let count = stream.read(&mut buffer).expect("read");
                    assert_ne!(count, 0, "the request is whole");
                    text.extend_from_slice(&buffer[..count]);
                }
                if !status.is_empty() {
                    stream
                        .write_all(format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n").as_bytes())
                        .expect("write");
                }
                texts.push(text);
            }
            texts
        });
        let form = Form { lines: 37, ..Form::default() };
        let plan = Plan { hosts: 1, pace: Pace::Every(Duration::from_secs(1)), ..plan(target, form) };
        let progress = Arc::new(Progress::default());
        let answers = send(&plan, &progress).expect("sent");
        let texts = server.join().expect("no panic");
        assert!(texts.windows(2).all(|pair| pair[0] == pair[1]), "the same bytes");
        assert_eq!((progress.sent().lines, answers.taken, answers.given_up_lines), (37, 1, 0));
        assert_eq!(answers.others.values().sum::<u64>(), 2, "{answers:?}");
    }

    #[test]
    fn the_same_batches_go_to_a_tcp_listener() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let form = Form { lines: 50, is_stream: true, ..Form::default() };
        let plan = Plan { hosts: 1, ..plan(listener.local_addr().expect("address"), form) };
        let progress = Arc::new(Progress::default());
        send(&plan, &progress).expect("sent");
        let (mut stream, _) = listener.accept().expect("accept");
        let mut text = Vec::new();
        stream.read_to_end(&mut text).expect("read");
        let ledger = Ledger::default();
        ledger.note(&text);
        assert_eq!((ledger.counts().distinct, progress.sent().lines), (100, 100));
    }
}
