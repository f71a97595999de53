//! Answers to the statements that this relay handles itself: those that writers send at their
//! start.

use std::fmt::Display;

use http::StatusCode;

use super::answer::Answer;

/// Formats a statement's result as InfluxDB does.
pub(super) fn result(ran: Result<(), impl Display>) -> Answer {
    let result = match ran {
        Ok(()) => serde_json::json!({ "statement_id": 0 }),
        Err(error) => serde_json::json!({ "statement_id": 0, "error": error.to_string() }),
    };
    Answer::json(StatusCode::OK, &serde_json::json!({ "results": [result] }))
}

/// Formats a list of databases as InfluxDB does.
pub(super) fn show_databases(names: Vec<String>) -> Answer {
    let values: Vec<[String; 1]> = names.into_iter().map(|name| [name]).collect();
    let series = serde_json::json!([{ "name": "databases", "columns": ["name"], "values": values }]);
    Answer::json(StatusCode::OK, &serde_json::json!({ "results": [{ "statement_id": 0, "series": series }] }))
}
