// The Go half of the ttrpc interoperability test: `interop server|client <socket>`, with the service that
// test_against_go.py implements in Python. The client runs every check and prints one line for each.
// `interop calls <socket>` makes many calls of a server that is killed meanwhile, whose handlers are in mortal.py.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

const service = "sandboxd.test.Interop"

type bytesValue = wrapperspb.BytesValue

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: interop server|client|calls <socket>")
		os.Exit(2)
	}
	var err error
	switch os.Args[1] {
	case "server":
		err = serve(os.Args[2])
	case "client":
		err = check(os.Args[2])
	case "calls":
		err = calls(os.Args[2])
	default:
		err = fmt.Errorf("unknown role %q", os.Args[1])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func unary(f func(context.Context, *bytesValue) (*bytesValue, error)) ttrpc.Method {
	return func(ctx context.Context, unmarshal func(interface{}) error) (interface{}, error) {
		var request bytesValue
		if err := unmarshal(&request); err != nil {
			return nil, err
		}
		return f(ctx, &request)
	}
}

func serve(path string) error {
	server, err := ttrpc.NewServer()
	if err != nil {
		return err
	}
	server.RegisterService(service, &ttrpc.ServiceDesc{
		Methods: map[string]ttrpc.Method{
			"Echo": unary(func(_ context.Context, request *bytesValue) (*bytesValue, error) {
				return request, nil
			}),
			"Fail": unary(func(_ context.Context, request *bytesValue) (*bytesValue, error) {
				return nil, status.Error(codes.NotFound, "no "+string(request.Value))
			}),
			"Metadata": unary(func(ctx context.Context, request *bytesValue) (*bytesValue, error) {
				metadata, _ := ttrpc.GetMetadata(ctx)
				values, _ := metadata.Get(string(request.Value))
				return wrapperspb.Bytes([]byte(strings.Join(values, ","))), nil
			}),
			"HasDeadline": unary(func(ctx context.Context, _ *bytesValue) (*bytesValue, error) {
				_, has := ctx.Deadline()
				return wrapperspb.Bytes([]byte(fmt.Sprint(has))), nil
			}),
			"Park": unary(func(ctx context.Context, _ *bytesValue) (*bytesValue, error) {
				<-ctx.Done()
				return nil, ctx.Err()
			}),
		},
		Streams: map[string]ttrpc.Stream{
			"Chat": {StreamingClient: true, StreamingServer: true, Handler: chat},
			"Up":   {StreamingClient: true, Handler: up},
			"Down": {StreamingServer: true, Handler: down},
		},
	})
	listener, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	go func() { // the test ends this process by closing its standard input
		io.Copy(io.Discard, os.Stdin)
		server.Close()
	}()
	fmt.Println("listening")
	if err := server.Serve(context.Background(), listener); !errors.Is(err, ttrpc.ErrServerClosed) {
		return err
	}
	return nil
}

// chat returns every message it receives.
func chat(_ context.Context, stream ttrpc.StreamServer) (interface{}, error) {
	for {
		var message bytesValue
		if err := stream.RecvMsg(&message); err == io.EOF {
			return nil, nil
		} else if err != nil {
			return nil, err
		}
		if err := stream.SendMsg(&message); err != nil {
			return nil, err
		}
	}
}

// up answers with all messages joined.
func up(_ context.Context, stream ttrpc.StreamServer) (interface{}, error) {
	var joined []byte
	for {
		var message bytesValue
		if err := stream.RecvMsg(&message); err == io.EOF {
			return wrapperspb.Bytes(joined), nil
		} else if err != nil {
			return nil, err
		}
		joined = append(joined, message.Value...)
	}
}

// down answers its one message byte by byte.
func down(_ context.Context, stream ttrpc.StreamServer) (interface{}, error) {
	var message bytesValue
	if err := stream.RecvMsg(&message); err != nil {
		return nil, err
	}
	for _, b := range message.Value {
		if err := stream.SendMsg(wrapperspb.Bytes([]byte{b})); err != nil {
			return nil, err
		}
	}
	return nil, nil
}

func check(path string) error {
	conn, err := net.Dial("unix", path)
	if err != nil {
		return err
	}
	client := ttrpc.NewClient(conn)
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	checks := []struct {
		name string
		run  func(context.Context, *ttrpc.Client) error
	}{
		{"unary", checkUnary},
		{"empty message", func(ctx context.Context, c *ttrpc.Client) error { return expect(ctx, c, "Echo", "", "") }},
		{"error codes", checkErrors},
		{"metadata", checkMetadata},
		{"deadline", checkDeadline},
		{"large payload", checkLarge},
		{"parallel calls beside a parked one", checkParallel},
		{"bidirectional stream", checkChat},
		{"client stream", checkUp},
		{"server stream", checkDown},
	}
	for _, check := range checks {
		if err := check.run(ctx, client); err != nil {
			return fmt.Errorf("%s: %w", check.name, err)
		}
		fmt.Println("ok", check.name)
	}
	return nil
}

const (
	callers        = 8
	callsPerCaller = 60
)

// calls makes calls in parallel beside a parked one, for two seconds at least, and expects the answer of each.
func calls(path string) error {
	conn, err := net.Dial("unix", path)
	if err != nil {
		return err
	}
	client := ttrpc.NewClient(conn)
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 40*time.Second)
	defer cancel()
	if err := expect(ctx, client, "Look", "", ""); err != nil {
		return err
	}
	fmt.Println("connected")
	results := make(chan error, callers+1)
	go func() { results <- expect(ctx, client, "Wait", "end", "end") }()
	for caller := 0; caller < callers; caller++ {
		go func(caller int) {
			for i := 0; i < callsPerCaller; i++ {
				tag := fmt.Sprintf("%016d", caller*callsPerCaller+i)
				value := tag + strings.Repeat("\x00", []int{0, 0, 5_000, 70_000}[i%4])
				for _, method := range []string{"Add", "Look", "LookLater"} {
					if err := expect(ctx, client, method, value, value); err != nil {
						results <- fmt.Errorf("%s: %w", tag, err)
						return
					}
				}
				large := "5000 " + tag
				if err := expect(ctx, client, "Grow", large, strings.Repeat(large, 5000)); err != nil {
					results <- fmt.Errorf("%s: %w", tag, err)
					return
				}
				time.Sleep(2 * time.Second / callsPerCaller)
			}
			results <- nil
		}(caller)
	}
	for caller := 0; caller < callers; caller++ {
		if err := <-results; err != nil {
			return err
		}
	}
	if err := expect(ctx, client, "Release", "end", "end"); err != nil {
		return err
	}
	return <-results
}

func call(ctx context.Context, client *ttrpc.Client, method string, value []byte) ([]byte, error) {
	var response bytesValue
	err := client.Call(ctx, service, method, wrapperspb.Bytes(value), &response)
	return response.Value, err
}

func expect(ctx context.Context, client *ttrpc.Client, method, value, expected string) error {
	got, err := call(ctx, client, method, []byte(value))
	if err != nil {
		return err
	}
	if string(got) != expected {
		return fmt.Errorf("%s(%q) = %q, expected %q", method, value, got, expected)
	}
	return nil
}

func expectCode(err error, code codes.Code, text string) error {
	if status.Code(err) != code || !strings.Contains(err.Error(), text) {
		return fmt.Errorf("got %v, expected %v with %q", err, code, text)
	}
	return nil
}

func checkUnary(ctx context.Context, client *ttrpc.Client) error {
	return expect(ctx, client, "Echo", "hello", "hello")
}

func checkErrors(ctx context.Context, client *ttrpc.Client) error {
	_, err := call(ctx, client, "Fail", []byte("pod"))
	if err := expectCode(err, codes.NotFound, "no pod"); err != nil {
		return err
	}
	_, err = call(ctx, client, "Nonsense", nil)
	if err := expectCode(err, codes.Unimplemented, "Nonsense"); err != nil {
		return err
	}
	var response bytesValue
	err = client.Call(ctx, "no.such.Service", "Echo", wrapperspb.Bytes(nil), &response)
	return expectCode(err, codes.Unimplemented, "no.such.Service")
}

func checkMetadata(ctx context.Context, client *ttrpc.Client) error {
	metadata := ttrpc.MD{}
	metadata.Set("key", "one", "two")
	return expect(ttrpc.WithMetadata(ctx, metadata), client, "Metadata", "key", "one,two")
}

func checkDeadline(ctx context.Context, client *ttrpc.Client) error {
	if err := expect(ctx, client, "HasDeadline", "", "true"); err != nil {
		return err
	}
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	_, err := call(short, client, "Park", nil)
	if err == nil || !(errors.Is(err, context.DeadlineExceeded) || status.Code(err) == codes.DeadlineExceeded) {
		return fmt.Errorf("a parked call past its deadline: %v", err)
	}
	return nil
}

func checkLarge(ctx context.Context, client *ttrpc.Client) error {
	for _, size := range []int{4000, 4096, 5000, 40_000, 65_526, 65_527, 300_000, 3 << 20} {
		value := bytes.Repeat([]byte("0123456789"), size/10+1)[:size]
		got, err := call(ctx, client, "Echo", value)
		if err != nil {
			return err
		}
		if !bytes.Equal(got, value) {
			return fmt.Errorf("%d bytes came back changed", size)
		}
	}
	return nil
}

func checkParallel(ctx context.Context, client *ttrpc.Client) error {
	parked, release := context.WithCancel(ctx)
	defer release()
	done := make(chan struct{})
	go func() {
		defer close(done)
		call(parked, client, "Park", nil)
	}()
	var wg sync.WaitGroup
	failures := make(chan error, 100)
	for i := 0; i < 100; i++ {
		wg.Add(1)
		go func(text string) {
			defer wg.Done()
			if err := expect(ctx, client, "Echo", text, text); err != nil {
				failures <- err
			}
		}(strings.Repeat(fmt.Sprintf("call %d ", i), i+1))
	}
	wg.Wait()
	select {
	case <-done:
		return errors.New("the parked call ended by itself")
	default:
	}
	release()
	<-done
	select {
	case err := <-failures:
		return err
	default:
		return nil
	}
}

func open(ctx context.Context, client *ttrpc.Client, method string, up, down bool, first *bytesValue) (ttrpc.ClientStream, error) {
	desc := &ttrpc.StreamDesc{StreamingClient: up, StreamingServer: down}
	if first == nil {
		return client.NewStream(ctx, desc, service, method, nil)
	}
	return client.NewStream(ctx, desc, service, method, first)
}

func checkChat(ctx context.Context, client *ttrpc.Client) error {
	stream, err := open(ctx, client, "Chat", true, true, nil)
	if err != nil {
		return err
	}
	for _, text := range []string{"a", "", strings.Repeat("b", 100_000)} {
		if err := stream.SendMsg(wrapperspb.Bytes([]byte(text))); err != nil {
			return err
		}
		var message bytesValue
		if err := stream.RecvMsg(&message); err != nil {
			return err
		}
		if string(message.Value) != text {
			return fmt.Errorf("%d bytes came back as %d", len(text), len(message.Value))
		}
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	return expectEOF(stream)
}

func expectEOF(stream ttrpc.ClientStream) error {
	var message bytesValue
	if err := stream.RecvMsg(&message); err != io.EOF {
		return fmt.Errorf("got %v, expected the end of the stream", err)
	}
	return nil
}

func checkUp(ctx context.Context, client *ttrpc.Client) error {
	stream, err := open(ctx, client, "Up", true, false, nil)
	if err != nil {
		return err
	}
	for _, text := range []string{"one ", "two ", "three"} {
		if err := stream.SendMsg(wrapperspb.Bytes([]byte(text))); err != nil {
			return err
		}
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	var message bytesValue
	if err := stream.RecvMsg(&message); err != nil {
		return err
	}
	if string(message.Value) != "one two three" {
		return fmt.Errorf("got %q", message.Value)
	}
	return nil
}

func checkDown(ctx context.Context, client *ttrpc.Client) error {
	stream, err := open(ctx, client, "Down", false, true, wrapperspb.Bytes([]byte("xyz")))
	if err != nil {
		return err
	}
	for _, expected := range "xyz" {
		var message bytesValue
		if err := stream.RecvMsg(&message); err != nil {
			return err
		}
		if string(message.Value) != string(expected) {
			return fmt.Errorf("got %q, expected %q", message.Value, expected)
		}
	}
	return expectEOF(stream)
}
