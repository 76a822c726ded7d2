// SPDX-License-Identifier: Apache-2.0

// Command promql parses PromQL expressions with the parser of Prometheus and lists the metrics that they read. Tests of
// alerting rules run it. It is a separate Go module because the parser depends on all of Prometheus.
//
// Standard input is a JSON list of expressions. Standard output is a JSON list with one entry for each expression, in
// the same order: the sorted list of metric names. The first invalid expression is an error.
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
	metrics := make([][]string, 0, len(expressions))
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
		metrics = append(metrics, slices.Sorted(maps.Keys(names)))
	}
	return json.NewEncoder(out).Encode(metrics)
}
