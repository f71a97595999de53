//! Serves readers: which backends may answer them, and how listeners reach these.

use std::sync::Arc;

use tokio::runtime::Handle;

use super::StartError;
use crate::config::{Backend as BackendConfig, Config, Incomplete, SelectInto};
use crate::deliver::statements::{Asker, NotRun, Scope, Statements};
use crate::deliver::{Backend, Health, Reads};
use crate::journal::{BackendId, Journal};
use crate::net::SecretFile;
use crate::pair::Pair;
use crate::query::{Readers, Settings};
use crate::receive::http::{Order, Reader, Refused};

/// The backends that readers may be sent to.
pub(super) fn readers(
    config: &Config,
    backends: &[Backend],
    healths: &[Arc<Health>],
    (journal, pair): (&Journal, Option<Arc<Pair>>),
) -> Result<Readers, StartError> {
    let mut asked = Vec::new();
    let all = config.backend.iter().zip(backends).zip(healths).enumerate();
    let moved = journal.moved_from();
    // A backend at a new address may be another server until an operator says otherwise.
    for (index, ((known, backend), health)) in all.filter(|(index, _)| moved[*index].is_none()) {
        if let Some(upstream) = backend.upstream(&reads(known))? {
            asked.push((known.name.clone(), BackendId::new(index), upstream, Arc::clone(health), known.query));
        }
    }
    Ok(Readers::new(asked, (journal.clone(), pair), settings(config)))
}

/// Settings for answering queries.
pub(super) fn settings(config: &Config) -> Settings {
    Settings {
        max_lag: config.query.max_lag,
        serves_incomplete: config.query.incomplete == Incomplete::Serve,
        timeout: config.query.timeout,
        max_concurrent: usize::from(config.query.max_concurrent),
        is_sticky: config.query.sticky,
    }
}

/// The interface for listeners: queries run on the listener's thread, statements on the backends'
/// runtime.
pub(super) fn reader(
    readers: &Arc<Readers>,
    statements: &Arc<Statements>,
    runtime: &Handle,
    config: &Config,
) -> Option<Reader> {
    if readers.is_empty() {
        return None;
    }
    let (readers, statements, runtime) = (Arc::clone(readers), Arc::clone(statements), runtime.clone());
    let answer = move |question| {
        let readers = Arc::clone(&readers);
        Box::pin(async move { readers.answer(question).await }) as _
    };
    let order = move |order: Order| {
        let statements = Arc::clone(&statements);
        let asker =
            if order.may_administer { Asker::Administrator } else { Asker::Client(order.authorization.clone()) };
        // Continues even if the client disconnects, because a half-run statement would be worse.
        let running = runtime.spawn(async move {
            let Order { statement, default, database, touches_points, .. } = order;
            let scope = match database {
                _ if !touches_points => Scope::NoPoints,
                Some(database) => Scope::Database(database),
                None => Scope::Everything,
            };
            statements.order(&statement, (default, scope), asker).await
        });
        Box::pin(async move {
            match running.await {
                Ok(Ok(answer)) => Ok(answer),
                Ok(Err(NotRun::Refused(error))) => Err(Refused::Told(error)),
                Ok(Err(NotRun::NoBackend(why))) => Err(Refused::NoBackend(why)),
                Err(error) => Err(Refused::NoBackend(error.to_string())),
            }
        }) as _
    };
    Some(Reader::new(answer, order, config.query.select_into == SelectInto::All))
}

fn reads(backend: &BackendConfig) -> Reads {
    let user = backend.query_username.clone().zip(backend.query_password_file.clone());
    match (user, backend.query_token_file.clone()) {
        (Some((user, file)), _) => Reads::AsUser(user, SecretFile::new(file)),
        (None, Some(file)) => Reads::WithToken(SecretFile::new(file)),
        (None, None) => Reads::AsClient,
    }
}
