// SPDX-License-Identifier: Apache-2.0

// Command sample is what the sample images run: it prints one line and waits for a signal.
package main

import (
	"context"
	"fmt"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	fmt.Println("sample is running")
	<-ctx.Done()
}
