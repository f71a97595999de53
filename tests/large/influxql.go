// Says what InfluxDB's own parser makes of query texts: a JSON string a line in, a JSON object a line out.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"reflect"
	"strings"

	"github.com/influxdata/influxql"
)

type answer struct {
	Ok     bool `json:"ok"`
	Writes bool `json:"writes"`
	Count  int  `json:"count"`
}

func parse(text string) (query *influxql.Query, err error) {
	defer func() {
		// The server catches it as well.
		if r := recover(); r != nil {
			query, err = nil, fmt.Errorf("panic: %v", r)
		}
	}()
	return influxql.NewParser(strings.NewReader(text)).ParseQuery()
}

func writes(statement influxql.Statement) bool {
	switch s := statement.(type) {
	case *influxql.SelectStatement:
		return s.Target != nil
	case *influxql.ExplainStatement:
		return false
	}
	return !strings.HasPrefix(reflect.TypeOf(statement).Elem().Name(), "Show")
}

func main() {
	in, out := bufio.NewReaderSize(os.Stdin, 1<<20), bufio.NewWriter(os.Stdout)
	defer out.Flush()
	for {
		line, err := in.ReadBytes('\n')
		if err != nil {
			return
		}
		var text string
		if json.Unmarshal(line, &text) != nil {
			return
		}
		var a answer
		if query, err := parse(text); err == nil {
			a.Ok, a.Count = true, len(query.Statements)
			for _, statement := range query.Statements {
				a.Writes = a.Writes || writes(statement)
			}
		}
		told, _ := json.Marshal(a)
		out.Write(append(told, '\n'))
	}
}
