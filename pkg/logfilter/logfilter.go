// SPDX-License-Identifier: Apache-2.0

// Package logfilter removes a log line that a dependency prints while the program starts.
//
// Gardener's client imports github.com/VictoriaMetrics/metrics. That package logs "INFO: metrics: disable exposing PSI
// metrics …" from a variable initialiser on every host without pressure stall information, before main runs. A program
// avoids the line by importing this package; no function has to be called.
//
// The filter is installed in time because Go initialises the first package, sorted by import path, whose imports are all
// initialised (Go specification, "Program initialization"). This package imports only packages that the dependency
// imports, too, so that it is initialised first. Do not add other imports.
package logfilter

import (
	"bytes"
	"io"
	"log"
	"os"
)

func init() {
	log.SetOutput(filter{os.Stderr})
}

// unwanted is part of each removed line.
var unwanted = []byte("metrics: disable exposing PSI metrics")

// filter passes log lines on to out, except the unwanted ones. Package log calls Write once per line, under its lock.
type filter struct{ out io.Writer }

func (f filter) Write(line []byte) (int, error) {
	if bytes.Contains(line, unwanted) {
		return len(line), nil
	}
	return f.out.Write(line)
}
