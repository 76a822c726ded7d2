// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/registry-cache/extension/test/testbed/artifacts"
)

const collectTimeout = 2 * time.Minute

// watched says that every spec is followed by what collects its artifacts.
var watched bool

var _ = AfterSuite(func() {
	// A failed spec without artifacts cannot be understood, and what collects them runs seldom.
	Expect(watched || tb == nil).To(BeTrue(), "nothing collects artifacts")
})

var _ = JustAfterEach(func(ctx context.Context) {
	watched = true
	report := CurrentSpecReport()
	if !report.Failed() || tb == nil {
		return
	}
	dir := filepath.Join("artifacts", strings.Map(fileRune, report.FullText()))
	if err := os.RemoveAll(dir); err != nil {
		AddReportEntry("artifacts", err.Error())
		return
	}
	// The summary first: on a busy machine, the time may be too short for all artifacts.
	var summary strings.Builder
	artifacts.Summarize(ctx, tb.Cluster, &summary)
	AddReportEntry("summary", summary.String())
	problems := artifacts.Collect(ctx, tb.Cluster, tb.Upstream, dir)
	AddReportEntry("artifacts", dir+"\n"+strings.Join(problems, "\n"))
}, NodeTimeout(collectTimeout))

// fileRune keeps what is safe in a file name everywhere.
func fileRune(r rune) rune {
	switch {
	case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '-', r == '.':
		return r
	}
	return '_'
}
