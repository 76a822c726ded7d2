// SPDX-License-Identifier: Apache-2.0

// Command promql parses PromQL expressions with Prometheus' own parser and tells which metrics they read, for the tests
// of alerting rules. It is a module of its own because the parser comes with all of Prometheus.
//
// It reads a JSON list of expressions from stdin and writes a JSON list of lists of names to stdout, sorted, in the same
// order. The first expression that is no PromQL is the error.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"

	"github.com/prometheus/prometheus/promql/parser"
)

func main() {
	if err := run(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "promql:", err)
		os.Exit(1)
	}
}

func run(in io.Reader, out io.Writer) error {
	var expressions []string
	if err := json.NewDecoder(in).Decode(&expressions); err != nil {
		return fmt.Errorf("reading expressions: %w", err)
	}
	read := make([][]string, 0, len(expressions))
	for _, expression := range expressions {
		parsed, err := parser.ParseExpr(expression)
		if err != nil {
			return fmt.Errorf("parsing %q: %w", expression, err)
		}
		names := map[string]bool{}
		parser.Inspect(parsed, func(node parser.Node, _ []parser.Node) error {
			if selector, ok := node.(*parser.VectorSelector); ok {
				names[selector.Name] = true
			}
			return nil
		})
		read = append(read, slices.Sorted(maps.Keys(names)))
	}
	return json.NewEncoder(out).Encode(read)
}
