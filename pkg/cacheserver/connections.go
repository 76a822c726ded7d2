// SPDX-License-Identifier: Apache-2.0

package cacheserver

import (
	"net"
	"net/http"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// connections bounds the connections of clients. One too many is closed at once, so that its client goes to the
// upstream instead of waiting.
type connections struct {
	limit   int64
	open    atomic.Int64
	refused prometheus.Counter
}

func newConnections(limit int, registerer prometheus.Registerer) *connections {
	c := &connections{
		limit: int64(limit),
		refused: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "registry_cache_connections_refused_total",
			Help: "Connections of clients that were closed at once, because the limit was reached.",
		}),
	}
	registerer.MustRegister(c.refused,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "registry_cache_connections",
			Help: "Open connections of clients.",
		}, func() float64 { return float64(c.open.Load()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "registry_cache_connections_limit",
			Help: "Connections of clients that may be open at a time.",
		}, func() float64 { return float64(c.limit) }))
	return c
}

// track implements http.Server.ConnState.
func (c *connections) track(conn net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		if c.open.Add(1) > c.limit {
			c.refused.Inc()
			// The server notices, and reports the end of the connection. An error would say that it has ended.
			_ = conn.Close()
		}
	case http.StateClosed, http.StateHijacked:
		c.open.Add(-1)
	}
}
